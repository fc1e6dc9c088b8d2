"""Calls of custom functions: offered to the gateways, handed out to one, watched until their outcome comes.

States of a call: WAITING (offered again whenever a gateway tells of room, and every second) → OUT (a gateway took it;
heartbeats keep it) → settled, or back to WAITING when its function worker gave it back or was silent too long. After
three such silences it fails. Calls of one function wait in line: first come, first served.

A call that went back to WAITING may still be settled by whom it was handed out to last, as long as nobody else took it;
every handing-out has a number, and those with an older one are refused. When this process dies nobody answers the
gateways any more, which cancel the tasks at their function workers; the run's next leg calls again with the same
idempotency key. While NATS is away no silence counts.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Final

from google.protobuf.message import DecodeError

from flint_bus import Bus, Message, Subscription
from flint_bus.errors import MessageTooLarge
from flint_bus.subjects import (
    function_caller_subject,
    function_free_subject,
    function_gateway_subject,
    function_offer_subject,
)
from flint_contracts.gen.flint.dispatch.v1 import functions_pb2 as dispatch
from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_ops.logging import get_logger

__all__ = ["FunctionCalls", "FunctionLost"]

_WINDOW: Final = 64
"""So many calls of a line are on offer at a time."""
_TICK_S: Final = 0.5
_OFFER_AGAIN_S: Final = 1.0
_FRESH_S: Final = 0.02
_SOON_S: Final = 0.005
_RECONNECT_S: Final = 10.0
"""How long a function worker whose connection broke has to come back."""
_LOSSES: Final = 3
_SETTLED: Final = 10_000
_LINE_IDLE_S: Final = 30.0

Verdict = dispatch.FunctionVerdict
Report = Callable[[float | None, str], None]

_log = get_logger("flint_worker.functions")


class FunctionLost(Exception):
    """Every function worker that had the call was lost."""


class _Call:
    """One call that waits for its outcome."""

    __slots__ = (
        "alive_until",
        "dispatch",
        "gateway",
        "id",
        "line",
        "losses",
        "offered_at",
        "out",
        "outcome",
        "report",
        "take",
        "task",
        "timeout_s",
    )

    def __init__(self, line: _Line, task: pb.Task, report: Report, outcome: asyncio.Future[dispatch.FunctionOutcome]):
        self.id = secrets.token_bytes(16)
        self.line = line
        self.task = task
        self.report = report
        self.outcome = outcome
        self.out = False
        self.dispatch = 0
        self.losses = 0
        self.take = b""
        self.gateway = ""
        self.timeout_s = 0.0
        self.alive_until = 0.0
        self.offered_at = -1.0


class _Line:
    """The calls of one function that wait, oldest first."""

    __slots__ = ("idle_since", "pump", "subscription", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[bytes, _Call] = {}
        self.subscription: Subscription | None = None
        self.pump: asyncio.TimerHandle | None = None
        self.idle_since = 0.0


_Key = tuple[str, str, str]  # namespace, function, version


class FunctionCalls:
    """All calls of custom functions of one worker process. Belongs to one event loop; `close` it at the end."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._token = uuid.uuid4().hex
        self._calls: dict[bytes, _Call] = {}
        self._settled: OrderedDict[bytes, int] = OrderedDict()
        self._lines: dict[_Key, _Line] = {}
        self._opening = asyncio.Lock()
        self._subscription: Subscription | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._forget_reconnect: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()

    async def call(self, namespace: str, task: pb.Task, report: Report) -> dispatch.FunctionOutcome:
        """The outcome of a task, whose `token` and `dispatch` are set here. Raises `FunctionLost`.

        Waits for a function worker as long as it takes. When it is cancelled, so is the task.
        """
        key = (namespace, task.function, task.version)
        await self._open()
        line = await self._line(key)
        call = _Call(line, task, report, self._loop.create_future())
        self._calls[call.id] = call
        line.waiting[call.id] = call
        if len(line.waiting) <= _WINDOW:
            self._offer(key, [call])
        try:
            return await call.outcome
        finally:
            del self._calls[call.id]
            line.waiting.pop(call.id, None)
            line.idle_since = self._loop.time()
            if not call.outcome.done() or call.outcome.cancelled():
                self._cancel(call, "the call was cancelled or took too long")

    async def close(self) -> None:
        """Ends the listening. No call is waiting any more."""
        self._forget_reconnect()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        for line in self._lines.values():
            if line.pump is not None:
                line.pump.cancel()
            if line.subscription is not None:
                await line.subscription.close()
        if self._subscription is not None:
            await self._subscription.close()

    # -- offering -----------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """The first call makes this process listen; one that never calls a custom function costs nothing."""
        if self._ticker is not None and not self._ticker.done():
            return
        async with self._opening:
            if self._ticker is not None and self._ticker.done():
                _log.error("function_calls_ticker_died", exc_info=self._ticker.exception())
                self._ticker = asyncio.create_task(self._tick(), name="function-calls")
            elif self._ticker is None:
                self._subscription = await self._bus.subscribe(function_caller_subject(self._token), self._on_report)
                self._forget_reconnect = self._bus.on_reconnect(self._reconnected)
                self._ticker = asyncio.create_task(self._tick(), name="function-calls")

    async def _line(self, key: _Key) -> _Line:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
            line.idle_since = self._loop.time()
            namespace, function, _ = key

            def room(message: Message) -> None:
                self._on_free(key, message)

            line.subscription = await self._bus.subscribe(function_free_subject(namespace, function), room)
        return line

    def _offer(self, key: _Key, calls: list[_Call]) -> None:
        namespace, function, version = key
        now = self._loop.time()
        for call in calls:
            call.offered_at = now
        offer = dispatch.FunctionOffer(
            caller=self._token,
            namespace=namespace,
            function=function,
            version=version,
            calls=[call.id for call in calls],
        )
        self._bus.publish_now(function_offer_subject(namespace, function), offer.SerializeToString())

    def _offer_head(self, key: _Key, line: _Line, most: int, older_than_s: float) -> None:
        before = self._loop.time() - older_than_s
        head = [call for call in islice(line.waiting.values(), most) if call.offered_at <= before]
        if head:
            self._offer(key, head)

    def _on_free(self, key: _Key, message: Message) -> None:
        line = self._lines.get(key)
        if line is None or not line.waiting:
            return
        try:
            free = dispatch.FunctionFree.FromString(message.data)
        except DecodeError:
            _log.warning("function_free_unreadable", size=len(message.data))
            return
        if free.function == key[1] and key[2] in ("", free.version):
            # Somewhat more than there is room for: another worker may be first, or a take may fail.
            self._offer_head(key, line, min(_WINDOW, max(2, 2 * free.tasks)), _FRESH_S)

    def _pump_soon(self, key: _Key, line: _Line) -> None:
        """A call was taken, so there is room: the window moves on."""
        if line.pump is None and line.waiting:

            def pump() -> None:
                line.pump = None
                self._offer_head(key, line, _WINDOW, _FRESH_S * 10)

            line.pump = self._loop.call_later(_SOON_S, pump)

    # -- what gateways report -----------------------------------------------------------------------------------------

    def _on_report(self, message: Message) -> None:
        try:
            report = dispatch.FunctionReport.FromString(message.data)
        except DecodeError:
            _log.warning("function_report_unreadable", size=len(message.data))
            return
        verdict = self._judge(report)
        try:
            message.respond(verdict.SerializeToString())
        except MessageTooLarge:  # nobody has it then: it waits on, and its caller's limits end it
            _log.error("function_task_too_large", size=verdict.ByteSize())

    def _judge(self, report: dispatch.FunctionReport) -> dispatch.FunctionVerdict:
        call = self._calls.get(report.call)
        if call is None:
            again = report.HasField("outcome") and self._settled.get(report.call) == report.dispatch
            return Verdict(verdict=Verdict.VERDICT_ACCEPTED if again else Verdict.VERDICT_UNKNOWN)
        key = self._key_of(call)
        if call.outcome.done() or key[0] != report.namespace:
            again = report.HasField("outcome") and self._settled.get(report.call) == report.dispatch
            return Verdict(verdict=Verdict.VERDICT_ACCEPTED if again else Verdict.VERDICT_UNKNOWN)
        kind = report.WhichOneof("report")
        if kind == "take":
            return self._taken(key, call, report)
        if report.dispatch != call.dispatch:
            return Verdict(verdict=Verdict.VERDICT_ELSEWHERE)
        if kind == "outcome":
            call.line.waiting.pop(call.id, None)
            call.outcome.set_result(report.outcome)
            self._settled[call.id] = call.dispatch
            if len(self._settled) > _SETTLED:
                self._settled.popitem(last=False)
        elif kind == "beat":
            call.line.waiting.pop(call.id, None)
            call.out = True
            call.gateway = report.gateway
            call.alive_until = self._loop.time() + call.timeout_s
            percent = report.beat.progress_percent if report.beat.HasField("progress_percent") else None
            if percent is not None or report.beat.message:
                call.report(percent, report.beat.message)
        elif kind == "left" and call.out:
            if report.left.given_back:
                self._wait_again(key, call)
            else:
                call.alive_until = min(call.alive_until, self._loop.time() + _RECONNECT_S)
        return Verdict(verdict=Verdict.VERDICT_ACCEPTED)

    def _taken(self, key: _Key, call: _Call, report: dispatch.FunctionReport) -> dispatch.FunctionVerdict:
        take = report.take
        if call.out and call.take != take.take:
            return Verdict(verdict=Verdict.VERDICT_ELSEWHERE)
        if not call.out:
            call.out = True
            call.dispatch += 1
            call.take = take.take
            call.line.waiting.pop(call.id, None)
            self._pump_soon(key, call.line)
        call.gateway = report.gateway
        call.timeout_s = take.heartbeat_timeout_ms / 1000
        call.alive_until = self._loop.time() + call.timeout_s
        task = pb.Task()
        task.CopyFrom(call.task)
        task.version = take.version
        task.dispatch = call.dispatch
        call.report(None, f"with {take.worker}")
        return Verdict(verdict=Verdict.VERDICT_ACCEPTED, task=task, dispatch=call.dispatch)

    @staticmethod
    def _key_of(call: _Call) -> _Key:
        namespace = call.task.run.split("/", 2)[1]
        return namespace, call.task.function, call.task.version

    # -- losses -------------------------------------------------------------------------------------------------------

    def _wait_again(self, key: _Key, call: _Call) -> None:
        """In line again, at its head: it came before all that wait."""
        call.out = False
        call.line.waiting = {call.id: call, **call.line.waiting}
        self._offer(key, [call])

    def _lost(self, call: _Call) -> None:
        call.losses += 1
        _log.warning("function_worker_lost", function=call.task.function, losses=call.losses)
        if call.losses >= _LOSSES:
            call.outcome.set_exception(
                FunctionLost(f"{call.losses} function workers were lost while they had the call")
            )
            self._cancel(call, "the call has failed")
            return
        call.report(None, "its function worker was lost; waits for another one")
        self._wait_again(self._key_of(call), call)

    def _cancel(self, call: _Call, reason: str) -> None:
        if not call.gateway:
            return
        order = dispatch.FunctionOrder(call=call.id, dispatch=call.dispatch, reason=reason)
        self._bus.publish_now(function_gateway_subject(call.gateway), order.SerializeToString())

    def _reconnected(self) -> None:
        now = self._loop.time()
        for call in self._calls.values():
            if call.out:
                call.alive_until = now + call.timeout_s
        for key, line in self._lines.items():
            self._offer_head(key, line, _WINDOW, 0)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if not self._bus.connected.is_set():
                continue
            now = self._loop.time()
            for call in list(self._calls.values()):
                if call.out and call.alive_until < now and not call.outcome.done():
                    self._lost(call)
            for key, line in list(self._lines.items()):
                if line.waiting:
                    line.idle_since = now
                    self._offer_head(key, line, _WINDOW, _OFFER_AGAIN_S)
                elif now - line.idle_since > _LINE_IDLE_S and not self._uses(line):
                    del self._lines[key]
                    if line.subscription is not None:
                        await line.subscription.close()

    def _uses(self, line: _Line) -> bool:
        return any(call.line is line for call in self._calls.values())
