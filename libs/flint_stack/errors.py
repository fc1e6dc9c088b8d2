"""What can go wrong with a stack on one machine; each message is one clear paragraph for a person."""

from __future__ import annotations

__all__ = [
    "AlreadyRunning",
    "ChildFailed",
    "ConfigurationInvalid",
    "MissingServer",
    "PortTaken",
    "ProbeFailed",
    "StackError",
]


class StackError(Exception):
    """Root of the errors below. The message is meant for the person at the terminal."""


class AlreadyRunning(StackError):
    """Another supervisor holds the data directory."""


class PortTaken(StackError):
    """A port that the stack needs is in use."""


class MissingServer(StackError):
    """The programs of an embedded server are not installed or cannot run here."""


class ConfigurationInvalid(StackError):
    """The user's part of the configuration cannot be read or does not fit."""


class ChildFailed(StackError):
    """A child did not become ready; carries the end of its log."""


class ProbeFailed(StackError):
    """A readiness probe did not get the answer it wants; tried again until the child's deadline."""
