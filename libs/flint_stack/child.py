"""What a supervised process is: how it starts, how it shows that it is ready, how it is asked to end."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "WAVE_EDGE",
    "WAVE_EXTRAS",
    "WAVE_REGISTRIES",
    "WAVE_SCHEDULERS",
    "WAVE_SERVERS",
    "WAVE_WORKERS",
    "ChildSpec",
]

# The order of ending is the reverse of these numbers: who takes work ends before who gives it, servers end last.
WAVE_SERVERS = 0
WAVE_EXTRAS = 1
WAVE_REGISTRIES = 2
WAVE_SCHEDULERS = 3
WAVE_EDGE = 4
WAVE_WORKERS = 5


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One process to keep running.

    `ready` asks once and raises ProbeFailed until the child can be used; None: ready once started. `before_start` runs
    before every start, restarts too (what a killed predecessor left is put in order there); `after_ready` each time the
    child became ready. `wrapper` stands before the command and must become it by exec (the process id stays).
    `forks`: its command is `python -m MODULE ...` of a service that may start as a fork of a process that has loaded
    libraries.
    """

    name: str
    argv: tuple[str, ...]
    wave: int = WAVE_EXTRAS
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    wrapper: tuple[str, ...] = ()
    address: str = ""
    ops_address: str = ""
    ready: Callable[[], Awaitable[None]] | None = None
    before_start: Callable[[], Awaitable[None]] | None = None
    after_ready: Callable[[], Awaitable[None]] | None = None
    ready_deadline_s: float = 30.0
    stop_signal: int = signal.SIGTERM
    stop_deadline_s: float = 10.0
    fatal_exit_codes: frozenset[int] = frozenset()
    forks: bool = False
