"""Large values: uploaded before a start whose input does not fit into one message, put into outputs that hold
references.

Of an input that is an object only the largest members are uploaded, so that reading the others fetches nothing.

Uploads and downloads are named by content, so a repeat after a lost connection is harmless.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Any, Final

import grpc
import orjson

from flint_contracts.gen.flint.payloads.v1 import payloads_pb2
from flint_core.payloads import Reference, spill
from flint_sdk._errors import FlintError, Unavailable, error_from_rpc
from flint_sdk._transport import Backoff, Transport, is_disconnect

__all__ = ["INLINE_BYTES", "references_in", "resolve", "upload_input"]

INLINE_BYTES: Final = 3 * 2**20
"""An input up to this size goes with the start itself; the gateway takes it out of the run's state by itself."""
_MOST_UPLOADS: Final = 64
"""An input that would have to be taken apart into more than so many values is uploaded as one."""
_PIECE_BYTES: Final = 2**19
_MOST_REFERENCES: Final = 1_000
"""Stored values that one value may come from, those within others included."""
_MEMBER: Final = "$payload"
_GO: Final = ("flint-upload", "go")
_WELCOME_S: Final = 10.0
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def references_in(value: Any) -> list[str]:
    """Digests of all references within a value, each once."""
    found: dict[str, None] = {}
    stack = [value]
    while stack:
        node = stack.pop()
        digest = _digest(node)
        if digest:
            found[digest] = None
        elif isinstance(node, dict):
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return list(found)


async def upload_input(transport: Transport, parent: str, data: bytes, timeout_s: float | None) -> bytes:
    """An input's JSON as it fits into one message, with references to what was stored for that.

    `timeout_s` is for all of it. Raises the client's errors.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (transport.timeout_s if timeout_s is None else timeout_s)
    small, parts = await asyncio.to_thread(_taken_apart, data)
    for part in parts:
        await _upload(transport, parent, part, max(0.001, deadline - loop.time()))
    return small


def _taken_apart(data: bytes) -> tuple[bytes, list[bytes]]:
    small, payloads = spill(orjson.loads(data), INLINE_BYTES)
    if len(payloads) <= _MOST_UPLOADS:
        return orjson.dumps(small), [payload.data for payload in payloads]
    whole = Reference(hashlib.sha256(data).hexdigest(), len(data))
    return orjson.dumps(whole.to_json()), [data]


async def _upload(transport: Transport, parent: str, data: bytes, timeout_s: float) -> None:
    """Stores a value's JSON under its hash. Raises the client's errors."""

    async def send(timeout_left_s: float) -> None:
        gateway = transport.gateway()
        call = gateway.payloads.UploadPayload(timeout=timeout_left_s, metadata=transport.metadata)
        welcome = asyncio.ensure_future(call.initial_metadata())
        try:
            await call.write(payloads_pb2.UploadPayloadRequest(parent=parent, size=len(data)))
            # One that is refused while it sends hears of a broken stream, maybe not of the reason: so it asks first.
            # A gateway that knows no such question waits for the rest.
            await asyncio.wait({welcome}, timeout=_WELCOME_S)
            if not welcome.done() or welcome.result().get(_GO[0]) == _GO[1]:
                for at in range(0, len(data), _PIECE_BYTES):
                    await call.write(payloads_pb2.UploadPayloadRequest(data=data[at : at + _PIECE_BYTES]))
                await call.done_writing()
            await call
        finally:
            welcome.cancel()
            call.cancel()

    await _repeated(transport, send, timeout_s)


async def resolve(transport: Transport, parent: str, value: Any, timeout_s: float | None) -> Any:
    """The value with contents in place of references. Raises the client's errors."""
    contents: dict[str, Any] = {}
    inner: dict[str, list[str]] = {}
    wanted = references_in(value)
    while wanted:
        if len(contents) + len(wanted) > _MOST_REFERENCES:
            raise FlintError(f"the value comes from more than {_MOST_REFERENCES} stored ones")
        for digest in wanted:
            contents[digest] = await _download(transport, f"{parent}/payloads/{digest}", timeout_s)
            inner[digest] = references_in(contents[digest])
        wanted = list(dict.fromkeys(part for parts in inner.values() for part in parts if part not in contents))
    for digest in _innermost_first(inner):
        if inner[digest]:
            contents[digest] = _with_contents(contents[digest], contents)
    return _with_contents(value, contents) if contents else value


def _innermost_first(inner: dict[str, list[str]]) -> list[str]:
    """All of them, each after those that it names. None names itself: names are hashes of contents."""
    order: dict[str, None] = {}
    stack = list(inner)
    while stack:
        digest = stack[-1]
        missing = [part for part in inner[digest] if part not in order]
        if missing:
            stack.extend(missing)
        else:
            order[stack.pop()] = None
    return list(order)


async def _download(transport: Transport, name: str, timeout_s: float | None) -> Any:
    pieces: list[bytes] = []

    async def receive(timeout_left_s: float) -> None:
        pieces.clear()
        gateway = transport.gateway()
        call = gateway.payloads.DownloadPayload(
            payloads_pb2.DownloadPayloadRequest(name=name), timeout=timeout_left_s, metadata=transport.metadata
        )
        pieces.extend([response.data async for response in call])

    await _repeated(transport, receive, timeout_s)
    data = b"".join(pieces)
    digest = await asyncio.to_thread(hashlib.sha256, data)
    if digest.hexdigest() != name.rpartition("/")[2]:
        raise FlintError(f"{name}: what came is not what its name says")
    return await asyncio.to_thread(orjson.loads, data)


async def _repeated(transport: Transport, attempt: Any, timeout_s: float | None) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (transport.timeout_s if timeout_s is None else timeout_s)
    backoff = Backoff()
    while True:
        gateway = transport.gateway()
        try:
            await attempt(max(0.001, deadline - loop.time()))
        except grpc.aio.AioRpcError as error:
            typed = error_from_rpc(error)
            if not is_disconnect(error) and not isinstance(typed, Unavailable):
                raise typed from None
            transport.leave(gateway)
        else:
            return
        pause = backoff.next_s()
        if loop.time() + pause >= deadline:
            raise typed
        await asyncio.sleep(pause)


def _digest(value: Any) -> str:
    if not isinstance(value, dict) or len(value) != 1:
        return ""
    content = value.get(_MEMBER)
    if not isinstance(content, dict) or content.keys() != {"sha256", "bytes"}:
        return ""
    digest = content["sha256"]
    return digest if isinstance(digest, str) and _SHA256.fullmatch(digest) else ""


def _with_contents(value: Any, contents: dict[str, Any]) -> Any:
    digest = _digest(value)
    if digest:
        return contents.get(digest, value)
    if isinstance(value, dict):
        return {key: _with_contents(member, contents) for key, member in value.items()}
    if isinstance(value, list):
        return [_with_contents(item, contents) for item in value]
    return value
