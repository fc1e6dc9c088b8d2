"""Large values at the edge: inputs that are too large for a run's state, uploads, downloads.

The gateway keeps nothing: a value is in its memory while it passes, all of them together within
`limits.values_in_memory_bytes`; a caller that finds no room waits.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import grpc
import orjson

from flint_bus.payloads import PayloadClient, PayloadMissing, PayloadsUnavailable, PayloadTooLarge
from flint_bus.room import Held
from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.payloads.v1 import payloads_pb2
from flint_contracts.gen.flint.payloads.v1.payloads_pb2_grpc import PayloadServiceServicer
from flint_core.payloads import Payload, Reference, spill
from flint_gateway.auth import authorise, current_principal
from flint_gateway.validation import check_json, namespace_of_parent
from flint_ops.config import LimitSettings
from flint_rpc.errors import ErrorReason, FieldViolation, Refused, component_unavailable, field_invalid

__all__ = ["LargeInputs", "PayloadServicer"]

_NAME: Final = re.compile(r"namespaces/(?P<namespace>[^/]+)/payloads/(?P<sha256>[0-9a-f]{64})")
_PIECE_S: Final = 60.0
"""An upload that sends nothing for so long is given up."""
_UPLOAD_S: Final = 600.0
"""So is one that is not complete after so long: it holds room that others wait for."""
_DRAIN_S: Final = 10.0
"""A caller that has sent too much is heard for so long, so that it is done sending when it is told."""
_GO: Final = (("flint-upload", "go"),)

Context = grpc.aio.ServicerContext[Any, Any]


class LargeInputs:
    """Makes inputs small enough for a run's state."""

    def __init__(self, client: PayloadClient, limits: LimitSettings) -> None:
        self._client = client
        self._limits = limits

    async def fit(self, namespace: str, data: bytes, prefix: str = "") -> bytes:
        """The input as it may stand in the state; what had to leave it is stored. Raises `Refused`."""
        limits = self._limits
        if len(data) <= limits.payload_bytes:
            return data
        if len(data) > limits.value_bytes:
            return data  # the check of the start refuses it, with its other faults
        problem = await asyncio.to_thread(check_json, data)
        if problem is not None:
            raise field_invalid(FieldViolation(prefix + "input", problem))
        try:
            async with self._client.room.hold(3 * len(data)):
                small, payloads = await asyncio.to_thread(lambda: spill(orjson.loads(data), limits.payload_bytes))
                for payload in payloads:
                    await self._client.put(namespace, payload)
        except PayloadTooLarge as error:
            raise too_large(str(error)) from None
        except PayloadsUnavailable as error:
            raise component_unavailable("payload store", str(error)) from None
        return orjson.dumps(small)


def too_large(detail: str, **metadata: str) -> Refused:
    """The refusal of a value that cannot be stored."""
    reason = ErrorReason.ERROR_REASON_PAYLOAD_TOO_LARGE
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, reason, detail, metadata=metadata)


class PayloadServicer(PayloadServiceServicer):
    """See the module. Callers are authenticated by the interceptor."""

    def __init__(self, client: PayloadClient, limits: LimitSettings) -> None:
        self._client = client
        self._limits = limits

    async def UploadPayload(
        self, request_iterator: AsyncIterator[payloads_pb2.UploadPayloadRequest], context: Context
    ) -> payloads_pb2.UploadPayloadResponse:
        """Collects, checks and stores one value."""
        try:
            # Nothing is held while it waits for its turn, and what comes is held from its first byte on.
            async with self._client.room.hold(0) as held:
                async with asyncio.timeout(_UPLOAD_S):
                    namespace, data = await self._collected(aiter(request_iterator), held, context)
                problem = await asyncio.to_thread(check_json, data)
                if problem is not None:
                    raise field_invalid(("data", problem))
                sha256 = (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
                await self._client.put(namespace, Payload(Reference(sha256, len(data)), data))
        except TimeoutError:
            raise Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                ErrorReason.ERROR_REASON_FIELD_INVALID,
                f"the value was not complete after {_UPLOAD_S:g} s: the upload was given up",
            ) from None
        except PayloadTooLarge as error:
            raise too_large(str(error)) from None
        except PayloadsUnavailable as error:
            raise component_unavailable("payload store", str(error)) from None
        return payloads_pb2.UploadPayloadResponse(
            name=f"namespaces/{namespace}/payloads/{sha256}", sha256=sha256, size=len(data)
        )

    async def _collected(
        self, requests: AsyncIterator[payloads_pb2.UploadPayloadRequest], held: Held, context: Context
    ) -> tuple[str, bytes]:
        """(namespace, value) of an upload; `held` grows with its pieces."""
        namespace = ""
        pieces: list[bytes] = []
        size = 0
        while True:
            try:
                async with asyncio.timeout(_PIECE_S):
                    request = await anext(requests)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise Refused(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    ErrorReason.ERROR_REASON_FIELD_INVALID,
                    f"nothing came for {_PIECE_S:g} s: the upload was given up",
                ) from None
            if not namespace:
                namespace = namespace_of_parent(request.parent)
                authorise(current_principal(), identity_pb2.Role.ROLE_OPERATOR, namespace)
                if request.size > self._limits.value_bytes:
                    raise self._beyond_limit()
                if request.size:
                    await context.send_initial_metadata(_GO)
            size += len(request.data)
            if size > self._limits.value_bytes:
                pieces.clear()
                await self._drain(requests)
                raise self._beyond_limit()
            await held.grow(2 * len(request.data))  # the pieces, and the whole that is made of them
            pieces.append(request.data)
        if not namespace:
            raise field_invalid(("parent", "is required in the first message"))
        return namespace, b"".join(pieces)

    def _beyond_limit(self) -> Refused:
        limit = self._limits.value_bytes
        return too_large(f"the value has more than {limit} bytes (limits.value_bytes)", limit_bytes=str(limit))

    async def _drain(self, requests: AsyncIterator[payloads_pb2.UploadPayloadRequest]) -> None:
        """Drops what still comes, as much again as a value may have.

        A client that is refused while it sends may hear of a broken stream before it hears why.
        """
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                async for request in requests:
                    size += len(request.data)
                    if size > self._limits.value_bytes:
                        return

    async def DownloadPayload(
        self, request: payloads_pb2.DownloadPayloadRequest, context: Context
    ) -> AsyncIterator[payloads_pb2.DownloadPayloadResponse]:
        """Hands the pieces on as they come."""
        match = _NAME.fullmatch(request.name)
        if match is None:
            raise field_invalid(("name", "must be namespaces/{namespace}/payloads/{sha256}"))
        try:
            async for data in self._client.stream(match["namespace"], match["sha256"]):
                yield payloads_pb2.DownloadPayloadResponse(data=data)
        except PayloadMissing as error:
            raise Refused(grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_PAYLOAD_NOT_FOUND, str(error)) from None
        except PayloadsUnavailable as error:
            raise component_unavailable("payload store", str(error)) from None
