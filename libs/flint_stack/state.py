"""The run folder `.flint/run`: one lock, and the state file by which anybody finds the processes of a stack."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flint_stack.errors import AlreadyRunning
from flint_stack.processes import ProcessIdentity, identify

__all__ = ["ChildRecord", "StackLock", "StackState", "read_state", "write_state"]


@dataclass(frozen=True, slots=True)
class ChildRecord:
    """One started child as the state file remembers it."""

    name: str
    wave: int
    stop_signal: int
    identity: ProcessIdentity


@dataclass(frozen=True, slots=True)
class StackState:
    """Who supervises, what runs, and how far the start is (`starting`, `ready`, `stopping`, `stopped`, `failed`)."""

    supervisor: ProcessIdentity
    phase: str = "starting"
    problem: str = ""
    children: tuple[ChildRecord, ...] = ()
    addresses: dict[str, str] = field(default_factory=dict)


def write_state(path: Path, state: StackState) -> None:
    """Replaces the state file atomically."""
    document = {
        "supervisor": _dump(state.supervisor),
        "phase": state.phase,
        "problem": state.problem,
        "children": [
            {"name": c.name, "wave": c.wave, "stop_signal": c.stop_signal, **_dump(c.identity)} for c in state.children
        ],
        "addresses": state.addresses,
    }
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        json.dump(document, file, indent=1)
    fresh.replace(path)


def read_state(path: Path) -> StackState | None:
    """The last state written, or None when there is none that can be read (the process search finds what it named)."""
    try:
        document = json.loads(path.read_text())
        return StackState(
            supervisor=_load(document["supervisor"]),
            phase=str(document["phase"]),
            problem=str(document["problem"]),
            children=tuple(
                ChildRecord(str(c["name"]), int(c["wave"]), int(c["stop_signal"]), _load(c))
                for c in document["children"]
            ),
            addresses={str(k): str(v) for k, v in document["addresses"].items()},
        )
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        return None


def _dump(identity: ProcessIdentity) -> dict[str, Any]:
    return {"pid": identity.pid, "started": identity.started}


def _load(document: dict[str, Any]) -> ProcessIdentity:
    return ProcessIdentity(int(document["pid"]), str(document["started"]))


class StackLock:
    """Exclusive use of a data directory, held by an open file: it ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self) -> None:
        """Takes the lock or raises AlreadyRunning, naming the process that holds it. Never waits."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            who = f" (process {holder})" if holder.isdigit() and identify(int(holder)) else ""
            raise AlreadyRunning(
                f"Another Flint{who} uses the data directory {self._path.parent.parent}. "
                "Stop it with `flint down`, or choose another directory with --data-dir."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._file = descriptor

    def release(self) -> None:
        """Gives the lock back; no effect when it is not held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def held(self) -> bool:
        """True between acquire and release."""
        return self._file is not None
