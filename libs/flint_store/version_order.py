"""Semantic versions as texts that sort bytewise in semantic-version order (semver.org 2.0.0, section 11)."""

from __future__ import annotations

import re

from flint_store.errors import VersionInvalid

__all__ = ["version_sort"]

MAX_LENGTH = 64

_NUMBER = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
    r"(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?",
    re.ASCII,
)

# What the key is made of, in bytewise order: "!" ends an identifier, "-" begins a prerelease, "0" a numeric and "1" an
# alphanumeric identifier, "~" stands for "no prerelease".


def version_sort(version: str) -> str:
    """A key whose bytewise order is the order of precedence; versions that differ in build metadata alone share one.

    Raises `VersionInvalid` for what is not a semantic version of at most 64 characters.
    """
    match = _VERSION.fullmatch(version) if len(version) <= MAX_LENGTH else None
    if match is None:
        raise VersionInvalid(f"{version[:MAX_LENGTH]!r} is not a semantic version such as 1.4.0 or 2.0.0-rc.1")
    major, minor, patch, prerelease = match.group(1, 2, 3, 4)
    core = "".join(_number(part) for part in (major, minor, patch))
    if prerelease is None:
        return core + "~"
    return core + "-" + "".join(_identifier(part) for part in prerelease.split("."))


def _number(digits: str) -> str:
    return f"{len(digits):02d}{digits}"


def _identifier(part: str) -> str:
    return f"0{_number(part)}!" if part.isdigit() else f"1{part}!"
