"""Compiled definitions for workers: answered over NATS from PostgreSQL, with the latest in memory.

One queue group of all schedulers: each request is answered by one of them. A request that is not answered is asked
again by the worker; nothing is kept here.
"""

from __future__ import annotations

from collections import OrderedDict

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus, Message
from flint_bus.subjects import DEFINITIONS
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_ops.logging import get_logger
from flint_store.errors import StoreError
from flint_store.workflows import program_by_hash

__all__ = ["DefinitionDesk"]

log = get_logger(__name__)

_KEEP = 256


class DefinitionDesk:
    """Answers `flint.definitions.<hash>`."""

    def __init__(self, bus: Bus, engine: AsyncEngine) -> None:
        self._bus = bus
        self._engine = engine
        self._programs: OrderedDict[bytes, bytes] = OrderedDict()

    async def open(self) -> None:
        """Begin to answer."""
        await self._bus.subscribe(DEFINITIONS, self._asked, queue="schedulers")

    async def _asked(self, message: Message) -> None:
        try:
            definition_hash = bytes.fromhex(message.subject.rsplit(".", 1)[1])
        except ValueError:
            log.warning("definition_asked_wrongly", subject=message.subject)
            return
        program = self._programs.get(definition_hash)
        if program is None:
            try:
                program = await program_by_hash(self._engine, definition_hash)
            except StoreError as error:
                log.warning("definition_not_read", error=str(error))
                return  # the worker asks again
            if program is not None:
                self._programs[definition_hash] = program
                while len(self._programs) > _KEEP:
                    self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(definition_hash)
        message.respond(dispatch_pb2.DefinitionResponse(program=program or b"").SerializeToString())
