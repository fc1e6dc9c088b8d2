"""What became of one HTTP exchange on its connection: whether it was a fresh one, and whether any answer came.

Servers close connections that were idle for a while. A request that meets such a connection fails although nothing is
wrong; that it met one shows here, where the bytes pass: nothing was connected for it, and not one byte came back.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore

from flint_worker.executors.addresses import GuardedBackend

__all__ = ["Exchange", "WatchedBackend", "watched"]


class Exchange:
    """One attempt at an exchange. httpcore connects and reads for it in the task that asked for it."""

    __slots__ = ("answered", "connected")

    def __init__(self) -> None:
        self.connected = False
        self.answered = False

    @property
    def met_a_closed_connection(self) -> bool:
        """Given that it failed: whether it was sent on a connection from before, and got no byte."""
        return not self.connected and not self.answered


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
        return _Stream(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        if data:
            exchange = _current.get()
            if exchange is not None:
                exchange.answered = True
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
