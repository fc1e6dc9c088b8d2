"""Gives memory back to the system that large values took, some time after they are gone.

glibc keeps what was freed in between for as long as the process lives: a worker that once handled values of 10 MiB
would hold ten times that ever after. States: idle → due (a large value was here) → idle, within a second.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
from collections.abc import Callable
from typing import Final

__all__ = ["Relief"]

_AFTER_S: Final = 1.0


def _trim() -> Callable[[int], int] | None:
    """glibc's; other systems give back by themselves."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


class Relief:
    """For one event loop, which it stops for some milliseconds, at most once a second. `close` at the end."""

    def __init__(self) -> None:
        self._trim = _trim()
        self._due: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Large values have been here: what they took is given back a little later."""
        if self._due is None and self._trim is not None:
            self._due = asyncio.get_running_loop().call_later(_AFTER_S, self._give_back, self._trim)

    def _give_back(self, trim: Callable[[int], int]) -> None:
        self._due = None
        trim(0)

    def close(self) -> None:
        """Nothing is given back any more."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
