"""Reads what a program writes, up to a limit for both of its streams together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

__all__ = ["Output", "Stream"]


class Output:
    """The streams of one program share a limit; `full` is set when they went over it."""

    def __init__(self, limit_bytes: int) -> None:
        self.left = limit_bytes
        self.full = asyncio.Event()

    async def pair(self) -> tuple[Stream, int, Stream, int]:
        """Two streams, each with the descriptor that the program writes to."""
        first, out = await self.stream()
        try:
            second, err = await self.stream()
        except BaseException:
            os.close(out)
            await first.close(0)
            raise
        return first, out, second, err

    async def stream(self) -> tuple[Stream, int]:
        """A stream and the file descriptor that the program writes to; the caller closes the latter."""
        reading, writing = os.pipe()
        stream = Stream(self._take)
        file = os.fdopen(reading, "rb", buffering=0)
        try:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: stream, file)
        except BaseException:
            file.close()
            os.close(writing)
            raise
        stream.transport = transport
        return stream, writing

    def _take(self, data: bytes) -> bytes:
        taken = data[: self.left]
        self.left -= len(taken)
        if len(taken) < len(data):
            self.full.set()
        return taken


class Stream(asyncio.Protocol):
    """What came out of one pipe. Beyond the limit everything is read and forgotten, so nobody blocks on the pipe."""

    def __init__(self, take: Callable[[bytes], bytes]) -> None:
        self._take = take
        self.content = bytearray()
        self.ended = asyncio.Event()
        self.transport: asyncio.BaseTransport | None = None

    def data_received(self, data: bytes) -> None:
        """Keeps what the limit allows."""
        self.content += self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Every writer has closed the pipe, or `close` was called."""
        self.ended.set()

    async def close(self, within_s: float) -> None:
        """Waits until all writers have closed, at most so long; then stops reading."""
        try:
            async with asyncio.timeout(within_s):
                await self.ended.wait()
        except TimeoutError:
            pass
        finally:
            if self.transport is not None:
                self.transport.close()
