"""Large values, as workers and gateways see them: stored and read in chunks through the schedulers.

A client has no store of its own and holds at most `in_flight_bytes` of other people's values at once: whoever wants
more waits. Every request may be repeated, so an answer that is lost costs time only.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Final

from flint_bus.bus import Bus
from flint_bus.errors import BusError
from flint_bus.room import Room
from flint_bus.subjects import PAYLOADS
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.payloads import MOST_PARTS, Payload, Reference, references_in_json

__all__ = ["PayloadClient", "PayloadMissing", "PayloadTooLarge", "PayloadsUnavailable"]

CHUNK_BYTES: Final = 2**19
_PARALLEL: Final = 4
_TIMEOUT_S: Final = 10.0
_TRIES: Final = 6
_FIRST_PAUSE_S: Final = 0.1


class PayloadMissing(Exception):
    """Nothing is stored under this reference in this namespace, or not what the reference says."""


class PayloadTooLarge(Exception):
    """The value holds more references, or comes to more with their contents, than is allowed."""


class PayloadsUnavailable(Exception):
    """The store did not do what it was asked to, for several tries."""


class PayloadClient:
    """Stores and reads values. One for a process; safe for concurrent use from one event loop."""

    def __init__(self, bus: Bus, in_flight_bytes: int) -> None:
        self._bus = bus
        self.room = Room(in_flight_bytes)
        self._chunks = asyncio.Semaphore(_PARALLEL)

    async def put(self, namespace: str, payload: Payload, run_id: bytes = b"", *, strict: bool = True) -> None:
        """Returns when the value is stored durably. Raises PayloadTooLarge, PayloadsUnavailable.

        Not strict: of more references than a value may hold only so many are noted; the run uses them itself.
        """
        sha256, size = bytes.fromhex(payload.reference.sha256), payload.reference.size
        found = await self._ask(namespace, find=dispatch_pb2.FindPayload(sha256=sha256, run_id=run_id, renew=True))
        if found.found:
            return
        pieces = range(0, size, CHUNK_BYTES)
        named = await asyncio.to_thread(references_in_json, payload.data)
        if strict and len(named) > MOST_PARTS:
            raise PayloadTooLarge(f"the value holds {len(named)} references; the limit is {MOST_PARTS}")
        parts = [bytes.fromhex(reference.sha256) for reference in named][:MOST_PARTS]
        finish = dispatch_pb2.FinishPayload(sha256=sha256, size=size, chunks=len(pieces), run_id=run_id, parts=parts)
        for _ in range(_TRIES):
            try:
                async with asyncio.TaskGroup() as group:
                    for index, at in enumerate(pieces):
                        chunk = dispatch_pb2.PutPayloadChunk(
                            sha256=sha256, index=index, data=payload.data[at : at + CHUNK_BYTES]
                        )
                        await self._chunks.acquire()
                        group.create_task(self._send(namespace, chunk))
            except* PayloadsUnavailable as several:
                raise several.exceptions[0] from None
            if not (await self._ask(namespace, finish=finish)).incomplete:
                return
        raise PayloadsUnavailable(f"the payload {payload.reference.sha256} could not be completed")

    async def _send(self, namespace: str, chunk: dispatch_pb2.PutPayloadChunk) -> None:
        try:
            await self._ask(namespace, put=chunk)
        finally:
            self._chunks.release()

    async def get(self, namespace: str, reference: Reference) -> bytes:
        """The value's JSON. Raises PayloadMissing, PayloadsUnavailable."""
        pieces = [piece async for piece in self.stream(namespace, reference.sha256)]
        data = b"".join(pieces)
        digest = await asyncio.to_thread(hashlib.sha256, data)
        if digest.hexdigest() != reference.sha256 or len(data) != reference.size:
            raise PayloadMissing(f"what is stored under {reference.sha256} is not what the reference says")
        return data

    async def stream(self, namespace: str, sha256: str) -> AsyncIterator[bytes]:
        """The value's JSON in pieces. Raises PayloadMissing, PayloadsUnavailable."""
        digest = bytes.fromhex(sha256)
        found = await self._ask(namespace, find=dispatch_pb2.FindPayload(sha256=digest))
        if not found.found:
            raise PayloadMissing(f"no payload {sha256} is stored in this namespace")
        for index in range(found.chunks):
            piece = await self._ask(namespace, get=dispatch_pb2.GetPayloadChunk(sha256=digest, index=index))
            if not piece.found:
                raise PayloadMissing(f"the payload {sha256} is not complete")
            yield piece.data

    async def use(self, namespace: str, reference: Reference, run_id: bytes) -> bool:
        """Notes that the run names the value; False when it is not stored. Raises PayloadsUnavailable."""
        find = dispatch_pb2.FindPayload(sha256=bytes.fromhex(reference.sha256), run_id=run_id)
        return (await self._ask(namespace, find=find)).found

    async def cached(self, namespace: str, key: bytes) -> bytes | None:
        """A cached result, JSON. Raises PayloadsUnavailable."""
        answer = await self._ask(namespace, get_cached=dispatch_pb2.GetCachedResult(key=key))
        return answer.data if answer.found else None

    async def keep(self, namespace: str, key: bytes, output: bytes, ttl_ms: int) -> None:
        """Keep a result for others. Raises PayloadsUnavailable."""
        await self._ask(namespace, put_cached=dispatch_pb2.PutCachedResult(key=key, output=output, ttl_ms=ttl_ms))

    async def _ask(
        self,
        namespace: str,
        *,
        find: dispatch_pb2.FindPayload | None = None,
        put: dispatch_pb2.PutPayloadChunk | None = None,
        finish: dispatch_pb2.FinishPayload | None = None,
        get: dispatch_pb2.GetPayloadChunk | None = None,
        get_cached: dispatch_pb2.GetCachedResult | None = None,
        put_cached: dispatch_pb2.PutCachedResult | None = None,
    ) -> dispatch_pb2.PayloadResponse:
        request = dispatch_pb2.PayloadRequest(
            namespace=namespace,
            find=find,
            put=put,
            finish=finish,
            get=get,
            get_cached=get_cached,
            put_cached=put_cached,
        ).SerializeToString()
        pause_s = _FIRST_PAUSE_S
        reason = ""
        for _ in range(_TRIES):
            try:
                answer = await self._bus.request(PAYLOADS, request, _TIMEOUT_S)
            except BusError as error:
                reason = str(error)
            else:
                response = dispatch_pb2.PayloadResponse.FromString(answer)
                if not response.error:
                    return response
                reason = response.error
            await asyncio.sleep(pause_s)
            pause_s *= 2
        raise PayloadsUnavailable(f"the payload store does not answer: {reason}")
