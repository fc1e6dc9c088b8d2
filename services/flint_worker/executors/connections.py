"""What became of one HTTP exchange on its connection: whether it was a fresh one, and whether any answer came.

Servers close connections that were idle for a while. A request that meets such a connection fails although nothing is
wrong; that it met one shows here, where the bytes pass: nothing was connected for it, and not one byte came back.

An HTTP/2 answer that nobody wants any more is ended here too, by a frame of our own: httpcore only forgets it, and the
server would hold it, and a place among its streams, for as long as the connection lives.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import httpcore

from flint_worker.executors.addresses import GuardedBackend

__all__ = ["Exchange", "WatchedBackend", "WatchedStream", "watched"]

_RST_STREAM: Final = 3
_CANCEL: Final = 8
_END_S: Final = 1.0


class Exchange:
    """One attempt at an exchange. httpcore connects and reads for it in the task that asked for it."""

    __slots__ = ("answered", "connected", "connection", "stream_id")

    def __init__(self) -> None:
        self.connected = False
        self.answered = False
        self.connection: WatchedStream | None = None
        self.stream_id: int | None = None

    @property
    def met_a_closed_connection(self) -> bool:
        """Given that it failed: whether it was sent on a connection from before, and got no byte.

        Never for an HTTP/2 request that has a stream: its bytes may be written, and the answer's read, by any of those
        that share the connection, so that nothing is known of what the server did. (A stream above the last one of a
        GOAWAY is sent again by httpcore itself.)
        """
        return not self.connected and not self.answered and self.stream_id is None

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """httpcore tells of each stage here (the request's extension `trace`)."""
        if event == "http2.send_request_headers.started":
            self.stream_id = info["stream_id"]

    async def end_stream(self) -> None:
        """Ends the HTTP/2 stream that was begun, if there was one."""
        if self.stream_id is not None and self.connection is not None:
            await self.connection.end_stream(self.stream_id)


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


@contextmanager
def watched() -> Iterator[Exchange]:
    """What the current task does meanwhile belongs to this exchange."""
    exchange = Exchange()
    token = _current.set(exchange)
    try:
        yield exchange
    finally:
        _current.reset(token)


class WatchedBackend(GuardedBackend):
    """Connects as its base does and tells exchanges what happens to them."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection whose reads are seen."""
        exchange = _current.get()
        if exchange is not None:
            exchange.connected = True
        return WatchedStream(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class WatchedStream(httpcore.AsyncNetworkStream):
    """A connection's bytes."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._writing = asyncio.Lock()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next bytes; empty when the other side has closed."""
        data = await self._stream.read(max_bytes, timeout)
        if data:
            exchange = _current.get()
            if exchange is not None:
                exchange.answered = True
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Sends all of it: whole frames, where they are HTTP/2."""
        exchange = _current.get()
        if exchange is not None:
            exchange.connection = self
        async with self._writing:
            await self._stream.write(buffer, timeout)

    async def end_stream(self, stream_id: int) -> None:
        """Tells an HTTP/2 server that nobody reads this answer. A connection that takes no bytes is closed (1 s)."""
        frame = b"\0\0\4" + bytes((_RST_STREAM, 0)) + stream_id.to_bytes(4, "big") + _CANCEL.to_bytes(4, "big")
        try:
            await self.write(frame, _END_S)
        except (httpcore.WriteError, httpcore.WriteTimeout):
            await self.aclose()

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """The same connection under TLS."""
        return WatchedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """What the connection below knows of itself."""
        return self._stream.get_extra_info(info)
