"""What a program is, what bounds it, and how it ended. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["EndedBy", "Ending", "Program", "ProgramLimits"]


@dataclass(frozen=True, slots=True)
class ProgramLimits:
    """What one program may use. Times in seconds, sizes in bytes.

    `cpu_s`, `file_bytes`, `files` hold for each of its processes; `memory_bytes` and `processes` for each and for all
    together; `output_bytes` for standard output and standard error together. `address_bytes` is all that a process may
    map, memory or not; None for programs that reserve much more than they use.
    """

    timeout_s: float
    cpu_s: int
    memory_bytes: int
    file_bytes: int
    files: int
    processes: int
    output_bytes: int
    address_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """One program to run. Never log it: any part may hold a secret.

    `argv[0]` is an absolute path. `environment` is all that it gets beside HOME, TMPDIR (both its work folder), PATH
    and LANG. `extra` can be read from file descriptor 3, `files` stand in the work folder.
    """

    argv: tuple[str, ...]
    limits: ProgramLimits
    environment: dict[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    extra: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)


class EndedBy(StrEnum):
    """Why a program ended."""

    ITSELF = "itself"
    TIMEOUT = "timeout"
    OUTPUT = "output"
    MEMORY = "memory"
    PROCESSES = "processes"
    CANCELLED = "cancelled"
    NOT_STARTED = "start"
    NOT_ISOLATED = "isolation"
    NO_FOLDER = "folder"
    """It was not started: its work folder could not be made or filled; `detail` says why."""
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a program ended. `code` is None when a signal ended it, `signal` when none did."""

    by: EndedBy
    code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    detail: str = ""
