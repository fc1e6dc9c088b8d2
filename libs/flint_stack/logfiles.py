"""Logs of children: one file each, appended, set aside at a start once it is large, so that two remain."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["log_tail", "open_log"]

ROTATE_BYTES = 8 << 20
_TAIL_BYTES = 16_384


def open_log(path: Path) -> int:
    """A descriptor that appends to `path` (0600), which the caller closes. A file beyond 8 MiB becomes `<name>.1`."""
    if path.exists() and path.stat().st_size > ROTATE_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def log_tail(path: Path, *, lines: int = 20, since: int = 0) -> str:
    """The last `lines` lines written at or after the byte `since`; empty when there are none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(min(since, size), size - _TAIL_BYTES))
        text = file.read(_TAIL_BYTES).decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])
