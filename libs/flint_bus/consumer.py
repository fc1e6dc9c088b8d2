"""Reading a stream in order, following it, in batches.

An ordered push consumer: no acknowledgements, in memory, one replica, removed by the server after 30 s without us. The
server pushes; its flow control is answered only when what came before has been taken, so what waits here is bounded by
the server's window.

States of the task behind it:
- CREATING: asks for the stream's state (is it the same one, has it gone back?), makes a consumer from the last sequence
  seen + 1 with a fresh delivery subject. Failures are tried again for ever with a bounded wait.
- LIVE: messages come. A gap in the consumer's sequence, two missed heartbeats, or a reconnect lead back to CREATING.
- LOST: the stream is missing, is another one of the same name, or its last sequence is below what was seen. What came
  before is still handed out, then the reader gets StreamLost.
When the task dies (only `close` cancels it) the reader gets StreamLost as well, never silence.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self

from flint_bus.errors import BusError, StreamApiError, StreamLost
from flint_bus.messages import StoredMessage, parse_headers, status_of
from flint_bus.streams import call_api
from flint_ops.logging import get_logger

if TYPE_CHECKING:
    from flint_bus.bus import Bus

__all__ = ["Consumer"]

_HEARTBEAT_S: Final = 5.0
_SILENCE_S: Final = 11.0
_INACTIVE_S: Final = 30.0
_API_TIMEOUT_S: Final = 3.0
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 2.0
_NS: Final = 1_000_000_000
_GONE_CODES: Final = frozenset({10059})

_log = get_logger("flint_bus.consumer")


class _FlowControl:
    """A place in the queue: answer the server's flow control when the reader gets here."""

    __slots__ = ("reply",)

    def __init__(self, reply: str) -> None:
        self.reply = reply


class Consumer:
    """`async for batch in consumer`, or `next_batch`. One reader at a time; stop with `close`."""

    def __init__(
        self,
        bus: Bus,
        stream: str,
        filter_subject: str,
        start_sequence: int,
        on_gone: Callable[[], None] | None,
        ahead: Callable[[StoredMessage], bool] | None = None,
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._filter = filter_subject
        self._seen = max(0, start_sequence - 1)  # last sequence received, or known not to be wanted
        self._on_gone = on_gone
        self._ahead = ahead
        self._queue: deque[StoredMessage | _FlowControl] = deque()
        self._messages = 0
        self._reader: asyncio.Future[None] | None = None
        self._lost: StreamLost | None = None
        self._restart = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._name = ""
        self._consumer_sequence = 0
        self._heard_at = 0.0
        self._created = ""
        self._unlisten: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self.restarts = 0
        """How often it had to be made again."""
        self.live = asyncio.Event()
        """Set while the server has our consumer."""

    @property
    def received(self) -> int:
        """The last sequence received (it may not have been taken yet)."""
        return self._seen

    @property
    def waiting(self) -> int:
        """Messages received and not taken yet."""
        return self._messages

    def start(self) -> None:
        """Called once by the bus."""
        self._task = asyncio.create_task(self._run(), name=f"consumer {self._stream} {self._filter}")

    async def close(self) -> None:
        """Ends it; a reader that waits gets StreamLost."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def next_batch(self, limit: int = 1000) -> list[StoredMessage]:
        """Everything that has arrived, at least one and at most `limit` messages, in order. Waits for the first.

        Raises StreamLost. Cancelling loses nothing.
        """
        while not self._messages:
            if self._queue:
                self._answer_flow_control()
            if self._lost is not None:
                raise self._lost
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        batch: list[StoredMessage] = []
        queue = self._queue
        while queue and len(batch) < limit:
            item = queue.popleft()
            if isinstance(item, StoredMessage):
                batch.append(item)
            else:
                self._bus.publish_now(item.reply, b"")
        self._messages -= len(batch)
        return batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[StoredMessage]:
        return await self.next_batch()

    # -- the reader's side of the wire --------------------------------------------------------------------------------

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self._heard_at = self._loop.time()
        if headers is not None and not data:
            status = status_of(headers)
            if status:
                self._on_control(status, reply, headers)
                return
        tokens = reply.split(b".")
        if len(tokens) < 9:
            return  # not a delivery
        # $JS.ACK.[domain.account.]stream.consumer.delivered.streamSeq.consumerSeq.time.pending[.random]
        base = 0 if len(tokens) == 9 else 2
        consumer_sequence = int(tokens[base + 6])
        if consumer_sequence != self._consumer_sequence + 1:
            self._ask_restart("gap")
            return
        self._consumer_sequence = consumer_sequence
        sequence = int(tokens[base + 5])
        self._seen = sequence
        message = StoredMessage(subject.decode(), sequence, data, headers, int(tokens[base + 8]))
        if self._ahead is not None and self._ahead(message):
            return
        self._queue.append(message)
        self._messages += 1
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    def _on_control(self, status: int, reply: bytes, headers: bytes) -> None:
        if status != 100:
            # 409: the consumer was deleted, or its leader changed.
            self._ask_restart(f"status {status}")
            return
        if reply:
            self._queue.append(_FlowControl(reply.decode()))
        else:
            fields = parse_headers(headers)
            last = fields.get("Nats-Last-Consumer", "")
            if last.isdigit() and int(last) != self._consumer_sequence:
                self._ask_restart("gap seen by a heartbeat")
                return
            stalled = fields.get("Nats-Consumer-Stalled")
            if stalled:
                self._queue.append(_FlowControl(stalled))
        if not self._messages:
            self._answer_flow_control()

    def _answer_flow_control(self) -> None:
        while self._queue and isinstance(item := self._queue[0], _FlowControl):
            self._queue.popleft()
            self._bus.publish_now(item.reply, b"")

    def _ask_restart(self, why: str) -> None:
        if not self._restart.is_set():
            _log.info("consumer_restarts", stream=self._stream, filter=self._filter, why=why, seen=self._seen)
            self._restart.set()

    # -- the task -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        forget = self._bus.on_reconnect(lambda: self._ask_restart("reconnect"))
        lost = StreamLost(f"the consumer of {self._stream} was closed")
        try:
            while True:
                await self._create()
                self.live.set()
                await self._until_restart()
                self.live.clear()
                self._drop()
                self.restarts += 1
        except StreamLost as error:
            lost = error
            _log.warning("stream_lost", stream=self._stream, filter=self._filter, why=str(error))
            if self._on_gone is not None:
                self._on_gone()
        finally:
            forget()
            self.live.clear()
            self._drop()
            self._lost = lost
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)

    async def _until_restart(self) -> None:
        while True:
            quiet_s = self._loop.time() - self._heard_at
            if quiet_s >= _SILENCE_S:
                self._ask_restart("silence")
            try:
                async with asyncio.timeout(max(0.1, _SILENCE_S - quiet_s)):
                    await self._restart.wait()
                return
            except TimeoutError:
                continue

    async def _create(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            self._restart.clear()
            try:
                await self._check_stream()
                await self._make()
                return
            except StreamLost:
                raise
            except StreamApiError as error:
                self._drop()
                if error.err_code in _GONE_CODES:
                    raise StreamLost(f"stream {self._stream} does not exist") from error
                _log.warning("consumer_refused", stream=self._stream, error=str(error))
            except BusError as error:
                self._drop()
                _log.debug("consumer_waits", stream=self._stream, error=str(error))
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    async def _check_stream(self) -> None:
        state = await self._bus.stream_state(self._stream, _API_TIMEOUT_S)
        if state is None:
            raise StreamLost(f"stream {self._stream} does not exist")
        if self._created and state.created != self._created:
            raise StreamLost(f"stream {self._stream} was made anew")
        if state.last_sequence < self._seen:
            raise StreamLost(f"stream {self._stream} ends at {state.last_sequence}, {self._seen} was seen")
        self._created = state.created

    async def _make(self) -> None:
        self._drop()
        self._name = "flint_" + uuid.uuid4().hex
        deliver = f"_INBOX.{self._name}"
        config: dict[str, Any] = {
            "name": self._name,
            "deliver_subject": deliver,
            "deliver_policy": "by_start_sequence" if self._seen else "all",
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "filter_subject": self._filter,
            "flow_control": True,
            "idle_heartbeat": int(_HEARTBEAT_S * _NS),
            "inactive_threshold": int(_INACTIVE_S * _NS),
            "mem_storage": True,
            "num_replicas": 1,
        }
        if self._seen:
            config["opt_start_seq"] = self._seen + 1
        self._consumer_sequence = 0
        self._heard_at = self._loop.time()
        self._unlisten = self._bus.listen_raw(deliver, self._on_message)
        await call_api(
            self._bus.request,
            f"CONSUMER.CREATE.{self._stream}.{self._name}.{self._filter}",
            {"stream_name": self._stream, "config": config},
            _API_TIMEOUT_S,
        )

    def _drop(self) -> None:
        if self._unlisten is None:
            return
        self._unlisten()
        self._unlisten = None
        # Fire and forget: the server removes it by itself after 30 s without interest.
        if self._bus.connected.is_set():
            self._bus.publish_now(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}", b"")
