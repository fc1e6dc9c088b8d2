"""Large values and cached results for workers and gateways, answered over NATS.

One queue group of all schedulers: each request is answered by one of them, from PostgreSQL or S3; nothing is kept
here. A request that is not answered is sent again: all of them may be repeated. `sweep` drops what nobody names; when
its loop dies the service stops, and other schedulers go on sweeping.
"""

from __future__ import annotations

import asyncio
from functools import partial

from google.protobuf.message import DecodeError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus, Message
from flint_bus.subjects import PAYLOADS
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.payloads import MOST_PARTS
from flint_ops.config import PayloadSettings
from flint_ops.logging import get_logger
from flint_store import payloads
from flint_store.errors import StoreError
from flint_store.objects import Objects

__all__ = ["PayloadDesk"]

log = get_logger(__name__)

_AT_ONCE = 4  # requests that one scheduler serves at the same time: each may hold a chunk
_CHUNK_BYTES = 2**19
_SWEEP_S = 300.0
_SWEEP_LIMIT = 100


class PayloadDesk:
    """Answers `flint.payloads`."""

    def __init__(self, bus: Bus, engine: AsyncEngine, settings: PayloadSettings) -> None:
        self._bus = bus
        self._engine = engine
        self._settings = settings
        self._objects = Objects(settings) if settings.store == "s3" else None

    async def open(self) -> None:
        """Begin to answer. A subscription serves one message at a time, so there are several."""
        for _ in range(_AT_ONCE):
            await self._bus.subscribe(PAYLOADS, self._asked, queue="schedulers")

    async def _asked(self, message: Message) -> None:
        request = dispatch_pb2.PayloadRequest()
        try:
            request.ParseFromString(message.data)
        except DecodeError:
            log.warning("payload_request_undecodable")
            return
        response = dispatch_pb2.PayloadResponse()
        try:
            await self._serve(request, response)
        except (StoreError, DBAPIError) as error:
            log.warning("payload_request_failed", error=str(error))
            response = dispatch_pb2.PayloadResponse(error="the payload store cannot be reached")
        message.respond(response.SerializeToString())

    async def _serve(self, request: dispatch_pb2.PayloadRequest, response: dispatch_pb2.PayloadResponse) -> None:
        namespace = request.namespace
        match request.WhichOneof("request"):
            case "find":
                await self._find(namespace, request.find, response)
            case "put":
                await self._put(namespace, request.put, response)
            case "finish":
                asked = request.finish
                objects = self._objects
                if len(asked.parts) > MOST_PARTS:
                    response.error = f"a payload names at most {MOST_PARTS} others"
                    return
                try:
                    await payloads.finish(
                        self._engine,
                        namespace,
                        asked.sha256,
                        size=asked.size,
                        chunks=asked.chunks,
                        location=self._settings.store,
                        run_id=asked.run_id or None,
                        parts=asked.parts,
                        elsewhere=None if objects is None else partial(objects.stored, namespace, asked.sha256),
                    )
                except payloads.PayloadIncomplete:
                    response.incomplete = True
            case "get":
                data = await self._chunk(namespace, request.get.sha256, request.get.index)
                response.found = data is not None
                response.data = data or b""
            case "get_cached":
                data = await payloads.cache_get(self._engine, namespace, request.get_cached.key)
                response.found = data is not None
                response.data = data or b""
            case "put_cached":
                kept = request.put_cached
                await payloads.cache_put(self._engine, namespace, kept.key, kept.output, kept.ttl_ms / 1000)
            case _:
                response.error = "the request is not known to this scheduler"

    async def _find(
        self, namespace: str, asked: dispatch_pb2.FindPayload, response: dispatch_pb2.PayloadResponse
    ) -> None:
        named = bool(asked.renew or asked.run_id)
        row = await (payloads.renew if named else payloads.find)(self._engine, namespace, asked.sha256)
        if row is None:
            return
        response.found, response.chunks, response.size = True, row.chunks, row.size
        if asked.run_id:
            await payloads.use(self._engine, namespace, asked.sha256, asked.run_id)

    async def _put(
        self, namespace: str, chunk: dispatch_pb2.PutPayloadChunk, response: dispatch_pb2.PayloadResponse
    ) -> None:
        if len(chunk.data) > _CHUNK_BYTES:
            response.error = f"a chunk has at most {_CHUNK_BYTES} bytes"
        elif self._objects is not None:
            await self._objects.put(namespace, chunk.sha256, chunk.index, chunk.data)
        else:
            await payloads.put_chunk(self._engine, namespace, chunk.sha256, chunk.index, chunk.data)

    async def _chunk(self, namespace: str, sha256: bytes, index: int) -> bytes | None:
        """Where the store was changed by configuration, what is there already is still found in PostgreSQL."""
        if self._objects is not None:
            data = await self._objects.get(namespace, sha256, index)
            if data is not None:
                return data
        return await payloads.get_chunk(self._engine, namespace, sha256, index)

    async def sweep(self) -> None:
        """Drops what no run names, and results whose time is over, now and then, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                await self.drop_unused()
                await payloads.drop_expired_results(self._engine, 100 * _SWEEP_LIMIT)
            except (StoreError, DBAPIError) as error:
                log.warning("payload_sweep_failed", error=str(error))

    async def drop_unused(self) -> int:
        """Drops payloads that no run has named for `payloads.unused_s`; how many."""
        dropped = 0
        while True:
            rows = await payloads.drop_unused(self._engine, self._settings.unused_s, _SWEEP_LIMIT)
            for namespace, sha256, chunks, location in rows:
                if location == "s3" and self._objects is not None:
                    # Somebody may have stored the same again meanwhile.
                    async with payloads.unless_stored(self._engine, namespace, sha256) as gone:
                        if gone:
                            await self._objects.drop(namespace, sha256, chunks)
            dropped += len(rows)
            if len(rows) < _SWEEP_LIMIT:
                return dropped
