"""Compiled definitions by hash: kept in a bounded cache, asked of the schedulers when missing.

A hash names its content, so nothing here ever becomes stale. Concurrent legs of one definition share one request.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import Final

from flint_bus import Bus, BusError
from flint_bus.subjects import definition_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.program import Program
from flint_ops.logging import get_logger

__all__ = ["DefinitionUnknown", "Definitions"]

_TIMEOUT_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
_UNKNOWN_TRIES: Final = 3

_log = get_logger("flint_worker.definitions")


class DefinitionUnknown(Exception):
    """The schedulers have no definition with this hash, or it cannot be read."""


class Definitions:
    """Programs for the legs of this process."""

    def __init__(self, bus: Bus, capacity: int = 512) -> None:
        self._bus = bus
        self._capacity = capacity
        self._programs: OrderedDict[bytes, Program] = OrderedDict()
        self._fetching: dict[bytes, asyncio.Task[Program]] = {}

    def cached(self, definition_hash: bytes) -> Program | None:
        """The program, if it is here already."""
        program = self._programs.get(definition_hash)
        if program is not None:
            self._programs.move_to_end(definition_hash)
        return program

    async def get(self, definition_hash: bytes) -> Program:
        """The program; asks for it as long as no scheduler answers. Raises DefinitionUnknown."""
        program = self.cached(definition_hash)
        if program is not None:
            return program
        task = self._fetching.get(definition_hash)
        if task is None:
            task = asyncio.create_task(self._fetch(definition_hash), name="definition")
            self._fetching[definition_hash] = task
            task.add_done_callback(lambda done: self._fetched(definition_hash, done))
        # Shielded: one leg that is dropped must not take the definition away from the others.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends requests under way."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fetched(self, definition_hash: bytes, done: asyncio.Task[Program]) -> None:
        self._fetching.pop(definition_hash, None)
        if not done.cancelled():
            done.exception()  # retrieved here, in case every leg that waited is gone

    async def _fetch(self, definition_hash: bytes) -> Program:
        pause_s = _FIRST_PAUSE_S
        unknown = 0
        while True:
            try:
                answer = await self._bus.request(
                    definition_subject(definition_hash),
                    dispatch_pb2.DefinitionRequest().SerializeToString(),
                    _TIMEOUT_S,
                )
            except BusError as error:
                _log.info("definition_not_answered", hash=definition_hash.hex(), error=str(error))
            else:
                encoded = dispatch_pb2.DefinitionResponse.FromString(answer).program
                if encoded and hashlib.sha256(encoded).digest() == definition_hash:
                    return self._keep(definition_hash, encoded)
                unknown += 1
                if unknown >= _UNKNOWN_TRIES:
                    raise DefinitionUnknown(f"no definition has the hash {definition_hash.hex()}")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _keep(self, definition_hash: bytes, encoded: bytes) -> Program:
        try:
            program = Program.decode(encoded)
        except ValueError as error:
            raise DefinitionUnknown(f"the definition {definition_hash.hex()} cannot be read: {error}") from error
        self._programs[definition_hash] = program
        while len(self._programs) > self._capacity:
            self._programs.popitem(last=False)
        return program
