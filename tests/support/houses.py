"""Running Flints that test modules share: opened when first asked for, closed when others need the machine more.

A whole stack is ten processes and a gigabyte. Each folder that kept one until the end of the session would leave
nothing of a small machine for the tests that come last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from support.house import House, open_house

__all__ = ["COMMON", "Houses"]

COMMON: Final[dict[str, Any]] = {
    "worker": {
        "slots": 600,
        "allow_private_addresses": True,
        "mcp_commands": [sys.executable],
        "scripts": {"grace_s": 0.2},
    },
    "scheduler": {"sweep_interval_s": 1.0},
    "events": {"lifecycle": "tasks"},
}
"""Settings that most folders can live with."""
_COMMON: Final = "common"


class Houses:
    """The common house, and one with settings of its own at a time. For one event loop."""

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        self._make_folder = make_folder
        self._open: dict[str, tuple[House, AsyncExitStack]] = {}

    async def common(self) -> House:
        """The house with the settings that most folders share."""
        return await self._get(_COMMON, COMMON)

    async def get(self, name: str, **overrides: Any) -> House:
        """The house of this name: the one that runs, or a new one with these sections of settings.

        It is valid until another one is asked for.
        """
        for other in self._open.keys() - {_COMMON, name}:
            await self._open.pop(other)[1].aclose()
        return await self._get(name, overrides)

    async def _get(self, name: str, settings: Mapping[str, Any]) -> House:
        if name not in self._open:
            stack = AsyncExitStack()
            house = await stack.enter_async_context(open_house(self._make_folder(name), **settings))
            self._open[name] = house, stack
        return self._open[name][0]

    async def close(self) -> None:
        """Closes all of them."""
        while self._open:
            await self._open.popitem()[1][1].aclose()
