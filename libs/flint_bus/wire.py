"""The connection: nats-py's client, with a hot path of our own.

What nats-py does well stays its own: connecting, TLS, authentication, pings, server lists, reconnecting and subscribing
again. Replaced is what is done per message: messages of our subscriptions go from the parser straight to a synchronous
handler (no queue, no task, no header parsing), and commands of one turn of the event loop are written in one go without
waking a flusher task.

States: CONNECTED ⇄ RECONNECTING (for ever), CLOSED. A server may also close a client for good (an error that is not a
permissions violation): nats-py then calls `closed_cb` and `Bus` builds a new connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import ProtocolError
from nats.protocol.parser import AWAITING_CONTROL_LINE, AWAITING_MSG_PAYLOAD, Parser

from flint_ops.logging import get_logger

__all__ = ["Handler", "Wire"]

Handler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""(subject, reply, payload, raw headers or None): called within the reader, must be quick."""

_LONGEST_LINE: Final = 65_536

_log = get_logger("flint_bus.wire")


class _DirectParser(Parser):
    """Cuts messages out of what was read without shifting a buffer, and hands them to direct handlers at once."""

    def __init__(self, client: Wire) -> None:
        self._epoch = 0
        self._head: tuple[bytes, int, bytes, int, int] = (b"", 0, b"", 0, 0)
        super().__init__(client)

    def reset(self) -> None:
        self._epoch = getattr(self, "_epoch", 0) + 1
        super().reset()

    async def parse(self, data: bytes = b"") -> None:
        if self.buf:
            if self.state == AWAITING_MSG_PAYLOAD and len(self.buf) + len(data) < self.needed + 2:
                self.buf.extend(data)  # amortised: a large payload is joined once, when it is complete
                return
            data = bytes(self.buf) + data
            self.buf = bytearray()
        epoch = self._epoch
        client = self.nc
        direct = client.direct
        pos, end = 0, len(data)
        while pos < end:
            if self.state == AWAITING_CONTROL_LINE:
                eol = data.find(b"\r\n", pos)
                if eol < 0:
                    if end - pos > _LONGEST_LINE:
                        raise ProtocolError("nats: control line too long")
                    break
                if data.startswith(b"MSG ", pos):
                    words = data[pos + 4 : eol].split()
                    reply = words[2] if len(words) == 4 else b""
                    self._head = (words[0], int(words[1]), reply, 0, int(words[-1]))
                elif data.startswith(b"HMSG ", pos):
                    words = data[pos + 5 : eol].split()
                    reply = words[2] if len(words) == 5 else b""
                    self._head = (words[0], int(words[1]), reply, int(words[-2]), int(words[-1]))
                else:
                    await super().parse(data[pos : eol + 2])
                    if self._epoch != epoch:
                        return  # the connection was replaced meanwhile; the rest belongs to the old one
                    pos = eol + 2
                    continue
                self.needed = self._head[4]
                self.state = AWAITING_MSG_PAYLOAD
                pos = eol + 2
            subject, sid, reply, header, size = self._head
            stop = pos + size
            if stop + 2 > end:
                break
            self.state = AWAITING_CONTROL_LINE
            headers = data[pos : pos + header] if header else None
            payload = data[pos + header : stop]
            pos = stop + 2
            handler = direct.get(sid)
            if handler is None:
                await client._process_msg(sid, subject, reply, payload, headers)
                if self._epoch != epoch:
                    return
                continue
            try:
                handler(subject, reply, payload, headers)
            except Exception:
                # A defect in one handler must not stop the reader for everybody.
                _log.exception("handler_failed", subject=subject.decode("utf-8", "replace"))
        if pos < end:
            self.buf = bytearray(data[pos:])


class Wire(Client):
    """One connection. Not thread-safe; belongs to the event loop that connected it."""

    def __init__(self) -> None:
        super().__init__()
        self.direct: dict[int, Handler] = {}
        self._ps = _DirectParser(self)
        self._flush_planned = False
        self._loop = asyncio.get_running_loop()

    def listen(self, subject: str, handler: Handler, queue: str = "") -> int:
        """Subscribes a direct handler; nats-py subscribes it again after each reconnect. Returns its id."""
        self._sid += 1
        sid = self._sid
        self._subs[sid] = Subscription(self, sid, subject, queue=queue)
        self.direct[sid] = handler
        # Also sent while reconnecting: a second SUB with the same id changes nothing.
        self.send(f"SUB {subject} {queue} {sid}\r\n".encode())
        return sid

    def unlisten(self, sid: int) -> None:
        """Ends a subscription made by `listen`."""
        self.direct.pop(sid, None)
        if self._subs.pop(sid, None) is not None and self.is_connected:
            self.send(f"UNSUB {sid}\r\n".encode())

    def send(self, command: bytes) -> None:
        """Queues a whole protocol command; what one turn of the event loop queues is written together."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._write_pending)

    def write_now(self) -> None:
        """Hands what is queued to the transport now, instead of in the event loop's next turn."""
        if self._pending and self.is_connected:
            self._write()

    @property
    def unsent_bytes(self) -> int:
        """Bytes queued for a connection that is not there."""
        return int(self._pending_data_size)

    async def drain_writes(self) -> None:
        """Waits while the socket's buffer is above its high-water mark."""
        transport: Any = self._transport
        if transport is not None and self.is_connected:
            await transport.drain()

    def _write_pending(self) -> None:
        self._flush_planned = False
        if not self._pending or not self.is_connected:
            return  # after a reconnect nats-py's own flush writes what is queued
        self._write()

    def _write(self) -> None:
        commands, self._pending = self._pending, []
        self._pending_data_size = 0
        transport: Any = self._transport
        transport.writelines(commands)
