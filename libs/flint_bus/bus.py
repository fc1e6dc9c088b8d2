"""The bus: one NATS connection, seen as Flint needs it.

States of the supervisor: CONNECTING → CONNECTED ⇄ RECONNECTING, for ever, until `close`. nats-py reconnects by
itself; when a server closes the client for good, the supervisor builds a new connection and subscribes everything
again. When the supervisor dies, `connected` stays clear and every call with a deadline fails with a typed error.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any, Final, Self

from flint_bus.append import append_command, read_ack
from flint_bus.consumer import Consumer
from flint_bus.errors import AppendUnknown, BusTimeout, Disconnected, MessageTooLarge, NoResponders
from flint_bus.inbox import Inbox
from flint_bus.messages import StoredMessage, status_of
from flint_bus.pace import Pace
from flint_bus.streams import StreamAdmin, StreamState
from flint_bus.subscription import MessageHandler, Subscription
from flint_bus.telling import Telling
from flint_bus.wire import Handler, Wire
from flint_ops import failpoints
from flint_ops.config import JournalSettings, NatsSettings
from flint_ops.logging import get_logger

__all__ = ["Bus"]

_APPENDS_IN_FLIGHT: Final = 16_384
_REQUESTS_IN_FLIGHT: Final = 4_096
_HEADERS_BYTES: Final = 1024
_UNSENT_LIMIT_BYTES: Final = 8 * 2**20
_CONNECT_TIMEOUT_S: Final = 2
_RECONNECT_WAIT_S: Final = 0.2
_PING_INTERVAL_S: Final = 5

_log = get_logger("flint_bus")


class Bus:
    """Core NATS and JetStream over one connection. Belongs to the event loop that connected it.

    Survives any outage of the servers: `connected` tells the state, `on_reconnect` callbacks run after each reconnect
    (within the loop, in order of registration).
    """

    def __init__(self, settings: NatsSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self.connected = asyncio.Event()
        """Set while connected."""
        self._closing = False
        self._closer: asyncio.Task[Any] | None = None
        self._wire: Wire = Wire()
        self._gone = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._reconnected: list[Callable[[], None]] = []
        token = uuid.uuid4().hex
        self.pace = Pace()
        """Of the event loop's turns, as far as messages fill them."""
        self._acks = Inbox(f"_INBOX.{token}.a.", _APPENDS_IN_FLIGHT)
        self._answers = Inbox(f"_INBOX.{token}.r.", _REQUESTS_IN_FLIGHT)
        self.telling = Telling(self.pace)
        """For those who tell many at a time."""
        self._listeners: dict[int, tuple[str, str, Handler]] = {}
        self._listener_sids: dict[int, int] = {}
        self._next_listener = 0
        self._streams = StreamAdmin(self.request)

    # -- life ---------------------------------------------------------------------------------------------------------

    @classmethod
    async def connect(cls, settings: NatsSettings, name: str) -> Self:
        """Connects, trying for ever; cancel the call to give up. `name` is shown by the server's monitoring."""
        bus = cls(settings, name)
        try:
            await bus._open_wire()
        except BaseException:
            await bus.close()
            raise
        bus._supervisor = asyncio.create_task(bus._supervise(), name="bus-supervisor")
        return bus

    async def close(self) -> None:
        """Sends what is queued and closes the connection. Outstanding calls fail."""
        self._closing = True
        self._closer = asyncio.current_task()
        self.connected.clear()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        self.telling.close()
        self._acks.close()
        self._answers.close()
        await self._wire.close()

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` after each reconnect. Returns what ends that."""
        self._reconnected.append(callback)

        def forget() -> None:
            if callback in self._reconnected:
                self._reconnected.remove(callback)

        return forget

    @property
    def max_payload(self) -> int:
        """The largest message the server takes, bytes."""
        return int(self._wire.max_payload)

    @property
    def max_append(self) -> int:
        """The largest message that can be appended, bytes: beside it there are headers."""
        return self.max_payload - _HEADERS_BYTES

    async def _open_wire(self) -> None:
        wire = Wire()
        self._wire = wire
        self._gone.clear()
        settings = self._settings
        errors = 0

        async def disconnected() -> None:
            self.connected.clear()
            self._acks.fail_all("the connection broke")
            self._answers.fail_all("the connection broke")
            if not self._closing:
                _log.warning("nats_disconnected", name=self._name)

        async def reconnected() -> None:
            nonlocal errors
            errors = 0
            _log.info("nats_reconnected", name=self._name)
            self._announce()

        async def closed() -> None:
            self._gone.set()

        async def error(cause: Exception) -> None:
            nonlocal errors
            errors += 1
            # `asyncio.wait_for`, which nats-py connects with, loses a cancellation that comes at the moment at which
            # the try ends (until Python 3.12): what was asked to give up would try for ever.
            task = asyncio.current_task()
            if task is not None and task is not self._closer and task.cancelling():
                raise asyncio.CancelledError
            if not self._closing and errors & (errors - 1) == 0:  # 1, 2, 4, 8, …: an outage is told, not flooded
                _log.warning("nats_error", name=self._name, error=str(cause) or type(cause).__name__, errors=errors)

        await wire.connect(
            servers=list(settings.urls),
            name=self._name,
            user=settings.user or None,
            password=settings.password.get_secret_value() or None,
            connect_timeout=_CONNECT_TIMEOUT_S,
            reconnect_time_wait=_RECONNECT_WAIT_S,  # type: ignore[arg-type]  # nats-py sleeps for it: a float is fine
            max_reconnect_attempts=-1,
            ping_interval=_PING_INTERVAL_S,
            max_outstanding_pings=2,
            disconnected_cb=disconnected,
            reconnected_cb=reconnected,
            closed_cb=closed,
            error_cb=error,
            skip_subject_validation=True,
        )
        self._acks.attach(wire)
        self._answers.attach(wire)
        for token, (subject, queue, handler) in self._listeners.items():
            self._listener_sids[token] = wire.listen(subject, handler, queue)
        self.connected.set()

    def _announce(self) -> None:
        self.connected.set()
        for callback in list(self._reconnected):
            callback()

    async def _supervise(self) -> None:
        while True:
            await self._gone.wait()
            self.connected.clear()
            self._acks.fail_all("the connection was closed")
            self._answers.fail_all("the connection was closed")
            _log.warning("nats_closed", name=self._name, error=str(self._wire.last_error))
            await asyncio.sleep(_RECONNECT_WAIT_S)
            try:
                await self._open_wire()
            except Exception as error:
                _log.warning("nats_connect_failed", name=self._name, error=str(error))
                self._gone.set()
                continue
            self._announce()

    async def until_connected(self, timeout_s: float) -> None:
        """Waits for the connection. Raises Disconnected after `timeout_s`."""
        if self.connected.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self.connected.wait()
        except TimeoutError:
            raise Disconnected("not connected to NATS") from None

    # -- core NATS ----------------------------------------------------------------------------------------------------

    def publish_now(self, subject: str, data: bytes) -> None:
        """Fire and forget, without waiting. Dropped when not connected and 8 MiB are queued already.

        Raises MessageTooLarge.
        """
        wire = self._wire
        if len(data) > wire.max_payload:
            raise MessageTooLarge(f"{len(data)} bytes; the server takes {wire.max_payload}")
        if not self.connected.is_set() and wire.unsent_bytes > _UNSENT_LIMIT_BYTES:
            return
        wire.send(b"PUB %s  %d\r\n%s\r\n" % (subject.encode(), len(data), data))

    def write_now(self) -> None:
        """Writes what was sent in this turn of the event loop now, not in the next: somebody waits for it.

        What is sent usually waits for the rest of the turn, so that all of it is written together.
        """
        self._wire.write_now()

    async def publish(self, subject: str, data: bytes) -> None:
        """Fire and forget; waits only while the socket cannot take more. Raises MessageTooLarge."""
        self.publish_now(subject, data)
        await self._wire.drain_writes()

    async def subscribe(self, subject: str, handler: MessageHandler, queue: str = "") -> Subscription:
        """Calls `handler` with each message, one after another per subscription.

        A plain function is called within the reader and must be quick. A coroutine function's calls are queued (at most
        10,000, then the newest are dropped and counted). What it raises is logged.
        """
        subscription = Subscription(subject, handler, self.publish_now)
        token = self._listen(subject, subscription.deliver, queue)
        subscription.start(lambda: self._unlisten(token))
        return subscription

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Asks and waits for one answer. Raises NoResponders, BusTimeout, Disconnected, MessageTooLarge."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        await self.until_connected(timeout_s)
        if self._answers.full:
            try:
                await self._answers.room(timeout_s)
            except TimeoutError:
                raise BusTimeout("too many requests are outstanding") from None
        wire = self._wire
        if len(data) > wire.max_payload:
            raise MessageTooLarge(f"{len(data)} bytes; the server takes {wire.max_payload}")
        left = deadline - asyncio.get_running_loop().time()
        reply, future = self._answers.reply_to(_read_answer, left, _request_failed)
        wire.send(b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply.encode(), len(data), data))
        result: bytes = await future
        return result

    # -- JetStream ----------------------------------------------------------------------------------------------------

    async def append(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str,
        stream: str,
        expected_sequence: int | None = None,
        timeout_s: float = 5.0,
    ) -> int:
        """Stores one message and returns its sequence. Many may be outstanding (16,384, then callers wait).

        `expected_sequence` is the last sequence of the subject (0: it has no message). Raises SequenceMismatch,
        StreamMissing, StreamFull, AppendRefused, AppendUnknown, MessageTooLarge. Appends of one task are sent in order.
        """
        if not self.connected.is_set():
            try:
                await self.until_connected(timeout_s)
            except Disconnected:
                raise AppendUnknown("not connected to NATS") from None
        if self._acks.full:
            try:
                await self._acks.room(timeout_s)
            except TimeoutError:
                raise AppendUnknown("too many appends are outstanding") from None
        return await self.append_now(
            subject,
            data,
            msg_id=msg_id,
            stream=stream,
            expected_sequence=expected_sequence,
            timeout_s=timeout_s,
        )

    def append_now(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str,
        stream: str,
        expected_sequence: int | None = None,
        timeout_s: float = 5.0,
    ) -> asyncio.Future[int]:
        """Like `append`, without a coroutine: sends at once and returns the future of the sequence.

        For callers that append many in a row and bound their number themselves. While not connected the future fails
        with AppendUnknown. Raises MessageTooLarge at once.
        """
        wire = self._wire
        if len(data) > self.max_append:
            raise MessageTooLarge(f"{len(data)} bytes; the server takes {self.max_append} beside headers")
        reply, future = self._acks.reply_to(read_ack, timeout_s, AppendUnknown)
        if failpoints.ARMED:
            failpoints.reach("append.before")
            future.add_done_callback(lambda _: failpoints.reach("append.after"))
        if self.connected.is_set():
            wire.send(append_command(subject, reply, data, msg_id, stream, expected_sequence))
        else:
            future.set_exception(AppendUnknown("not connected to NATS"))
        return future

    async def last_message(self, stream: str, subject: str, timeout_s: float = 5.0) -> StoredMessage | None:
        """The subject's last message, read from the stream's leader, or None.

        Raises StreamMissing, and what `request` raises.
        """
        return await self._streams.last_message(stream, subject, timeout_s)

    async def stream_state(self, stream: str, timeout_s: float = 5.0) -> StreamState | None:
        """The stream's state, or None when there is no such stream. Raises what `request` raises, StreamApiError."""
        return await self._streams.state(stream, timeout_s)

    async def create_journal(self, generation: int, settings: JournalSettings) -> None:
        """Creates a generation's stream, or brings an existing one to these settings. Only owners do (R11)."""
        await self._streams.create_journal(generation, settings)

    async def create_jobs(self, settings: JournalSettings) -> None:
        """Creates the stream of jobs, or brings the existing one to these settings."""
        await self._streams.create_jobs(settings)

    async def next_sequence(self, stream: str, subject: str, sequence: int, timeout_s: float = 5.0) -> int | None:
        """The first message of a subject (which may hold wildcards) at or after `sequence` (1 and up); None: no such.

        Raises StreamMissing, and what `request` raises.
        """
        return await self._streams.next_sequence(stream, subject, sequence, timeout_s)

    async def purge_up_to(self, stream: str, sequence: int, subject: str = "", timeout_s: float = 10.0) -> int:
        """Removes messages (of a subject, which may hold wildcards) up to and including `sequence`; returns how many.

        Of all subjects it is cheap: the server drops whole files. Of one it reads every file in which the subject may
        have messages, with the stream locked meanwhile. A missing stream has none.
        """
        return await self._streams.purge_up_to(stream, sequence, subject, timeout_s)

    async def delete_stream(self, stream: str, timeout_s: float = 10.0) -> bool:
        """Deletes a stream; False when there was none."""
        return await self._streams.delete(stream, timeout_s)

    def consume(
        self,
        stream: str,
        filter_subject: str,
        start_sequence: int = 1,
        on_gone: Callable[[], None] | None = None,
        ahead: Callable[[StoredMessage], bool] | None = None,
    ) -> Consumer:
        """Reads a stream in order from `start_sequence`, following it. See `Consumer`.

        `on_gone` is called once when the stream is found lost, before the reader sees StreamLost. `ahead` is shown each
        message as it arrives, once and in order, and must be quick: what it answers True to was taken and does not
        reach the reader.
        """
        consumer = Consumer(self, stream, filter_subject, start_sequence, on_gone, ahead)
        consumer.start()
        return consumer

    # -- for the room's own modules -----------------------------------------------------------------------------------

    def _listen(self, subject: str, handler: Handler, queue: str = "") -> int:
        self._next_listener += 1
        token = self._next_listener
        self._listeners[token] = (subject, queue, handler)
        self._listener_sids[token] = self._wire.listen(subject, handler, queue)
        return token

    def _unlisten(self, token: int) -> None:
        if self._listeners.pop(token, None) is not None:
            self._wire.unlisten(self._listener_sids.pop(token))

    def listen_raw(self, subject: str, handler: Handler) -> Callable[[], None]:
        """A direct handler on a subject (within the room only). Returns what ends it."""
        token = self._listen(subject, handler)
        return lambda: self._unlisten(token)


def _read_answer(data: bytes, headers: bytes | None) -> Any:
    if headers is not None and status_of(headers) == 503:
        raise NoResponders("nobody listens on this subject")
    return data


def _request_failed(why: str) -> Exception:
    return BusTimeout(why) if why == "no answer in time" else Disconnected(why)
