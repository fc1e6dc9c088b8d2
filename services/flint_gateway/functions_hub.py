"""Between the workers that wait for custom functions and the function workers that are connected here.

A worker offers calls on core NATS; a gateway with credit for the function asks for one (a take, which reserves the
credit), and what it is granted goes to its function worker. Heartbeats and outcomes are passed on to the worker that
waits, named by the task's token, and answered; what nobody answers for 15 s is cancelled at the function worker.

Nothing here must survive: a gateway that dies is replaced by the one that its function workers connect to next.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import Coroutine, Iterator
from typing import Any, Final

from google.protobuf.message import DecodeError

from flint_bus.bus import Bus
from flint_bus.errors import BusError, BusTimeout, MessageTooLarge, NoResponders
from flint_bus.messages import Message
from flint_bus.subjects import (
    FUNCTION_OFFERS,
    function_caller_subject,
    function_free_subject,
    function_gateway_subject,
)
from flint_bus.subscription import Subscription
from flint_contracts.gen.flint.dispatch.v1 import functions_pb2 as dispatch
from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_gateway.functions_catalog import FunctionCatalog
from flint_gateway.functions_schemas import Declared
from flint_gateway.functions_session import Held, Session
from flint_gateway.functions_tokens import decode_token, encode_token, is_subject_token
from flint_gateway.functions_values import arguments_problem, failed, too_large
from flint_ops import metrics
from flint_ops.logging import get_logger

__all__ = ["FunctionHub"]

_TAKE_TRIES: Final = 3
_TAKE_TIMEOUT_S: Final = 1.0
_REPORT_TIMEOUT_S: Final = 3.0
_OUTCOME_TRIES: Final = 3
_PAUSE_S: Final = 0.3
_GIVE_UP_S: Final = 15.0
_STARVED: Final = 10_000
_BACKLOG: Final = 256
_BACKLOG_S: Final = 2.0
"""A call that waits is offered anew every second."""
_HELD: Final = 12_000
"""Tasks of one function worker: those of its hello, and its credit."""

Verdict = dispatch.FunctionVerdict
Key = tuple[str, str, str]

_SESSIONS = metrics.gauge("gateway_function_workers", "Function workers connected")
_TASKS = metrics.counter("gateway_function_tasks", "Tasks of custom functions, by what came of them", ("outcome",))

_log = get_logger("flint_gateway.functions")


class FunctionHub:
    """See the module. One event loop; `close` ends the streams."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._token = uuid.uuid4().hex
        self._serving: dict[Key, list[Session]] = {}
        self._sessions: set[Session] = set()
        self._held: dict[tuple[bytes, int], Held] = {}
        """By call and its handing-out: what orders name."""
        self._starved: dict[Key, None] = {}
        self._backlog: dict[Key, OrderedDict[tuple[str, bytes], float]] = {}
        """Calls that were offered when there was no room, oldest first, until when: asked for as soon as there is."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []
        self.catalog: FunctionCatalog | None = None

    async def open(self) -> None:
        """Begins to hear offers and orders."""
        self._subscriptions = [
            await self._bus.subscribe(FUNCTION_OFFERS, self._on_offer),
            await self._bus.subscribe(function_gateway_subject(self._token), self._on_order),
        ]

    async def close(self) -> None:
        """Tells every function worker to go elsewhere and ends its stream; tasks under way stay theirs."""
        for subscription in self._subscriptions:
            await subscription.close()
        for session in list(self._sessions):
            session.send(pb.ConnectResponse(drain=pb.Drain()))
            session.finish()
        tasks = list(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_REPORT_TIMEOUT_S)
            for task in late:
                task.cancel()

    def served(self) -> Iterator[Key]:
        """The (namespace, name, version) that function workers here execute."""
        return iter(list(self._serving))

    @property
    def sessions(self) -> int:
        """Open streams."""
        return len(self._sessions)

    # -- sessions -----------------------------------------------------------------------------------------------------

    def join(self, session: Session, tokens: list[str]) -> None:
        """A function worker is connected: it may report on the tasks that it holds. It is sent none yet."""
        self._sessions.add(session)
        _SESSIONS.set(len(self._sessions))
        for text in tokens:
            held = self._hold(session, text)
            if held is not None:
                self.beat(session, pb.Heartbeat(token=text))

    def serve(self, session: Session) -> None:
        """Its functions are registered: from now on it is sent tasks."""
        if session not in self._sessions:
            return
        for name, version in session.functions:
            key = (session.namespace, name, version)
            self._serving.setdefault(key, []).append(session)
            self._starved[key] = None
        self.credited(session)

    def leave(self, session: Session, *, told: bool) -> None:
        """Its stream has ended. `told`: by this gateway, or after a goodbye; else callers are told that it broke."""
        session.open = False
        self._sessions.discard(session)
        _SESSIONS.set(len(self._sessions))
        for name, version in session.functions:
            key = (session.namespace, name, version)
            left = [other for other in self._serving.get(key, ()) if other is not session]
            if left:
                self._serving[key] = left
            else:
                self._serving.pop(key, None)
                self._starved.pop(key, None)
                self._backlog.pop(key, None)
        for held in list(session.held.values()):
            self._forget(held)
            if not told:
                self._spawn(self._tell_left(session, held, given_back=False))

    def credited(self, session: Session) -> None:
        """It has room: callers that found none are told."""
        if session.room <= 0:
            return
        now = time.monotonic()
        for name, version in session.functions:
            key = (session.namespace, name, version)
            backlog = self._backlog.get(key)
            while backlog and session.room > 0:
                caller, call = next(iter(backlog))
                if backlog.pop((caller, call)) > now:
                    self._ask_for(session, caller, call, name, version)
            if key in self._starved and session.room > 0:
                self._starved.pop(key)
                free = dispatch.FunctionFree(function=name, version=version, tasks=session.room)
                self._bus.publish_now(function_free_subject(session.namespace, name), free.SerializeToString())

    # -- taking calls -------------------------------------------------------------------------------------------------

    def _on_offer(self, message: Message) -> None:
        if not self._serving:
            return
        try:
            offer = dispatch.FunctionOffer.FromString(message.data)
        except DecodeError:
            _log.warning("function_offer_unreadable", size=len(message.data))
            return
        version = offer.version
        if not version and self.catalog is not None:
            version = self.catalog.highest(offer.namespace, offer.function)
        key = (offer.namespace, offer.function, version)
        sessions = self._serving.get(key)
        if not sessions or not is_subject_token(offer.caller):
            return
        for call in offer.calls:
            session = max(sessions, key=lambda session: session.room)
            if session.room > 0:
                self._ask_for(session, offer.caller, call, offer.function, version)
            elif not self._keep(key, offer.caller, call):
                return

    def _keep(self, key: Key, caller: str, call: bytes) -> bool:
        """Remembers a call for when there is room, and that room is to be told of; False when enough are waiting."""
        if len(self._starved) < _STARVED:
            self._starved[key] = None
        backlog = self._backlog.setdefault(key, OrderedDict())
        now = time.monotonic()
        if len(backlog) >= _BACKLOG and backlog[next(iter(backlog))] <= now:
            later = ((entry, until) for entry, until in backlog.items() if until > now)
            self._backlog[key] = backlog = OrderedDict(later)
        if len(backlog) >= _BACKLOG and (caller, call) not in backlog:
            return False
        backlog[caller, call] = now + _BACKLOG_S
        return True

    def _ask_for(self, session: Session, caller: str, call: bytes, function: str, version: str) -> None:
        session.credit -= 1
        self._spawn(self._take(session, caller, call, function, version))

    async def _take(self, session: Session, caller: str, call: bytes, function: str, version: str) -> None:
        declared = session.functions[function, version]
        report = dispatch.FunctionReport(
            call=call,
            namespace=session.namespace,
            gateway=self._token,
            take=dispatch.FunctionTake(
                take=secrets.token_bytes(8),
                version=version,
                heartbeat_timeout_ms=declared.heartbeat_timeout_ms,
                worker=session.worker,
            ),
        )
        verdict: dispatch.FunctionVerdict | None = None
        for _ in range(_TAKE_TRIES):
            try:
                verdict = await self._ask(caller, report, _TAKE_TIMEOUT_S)
                break
            except NoResponders:
                break
            except BusError:
                continue
        if verdict is None or verdict.verdict != Verdict.VERDICT_ACCEPTED:
            session.add_credit(1)
            self.credited(session)
            return
        token = dispatch.FunctionToken(
            caller=caller, call=call, dispatch=verdict.dispatch, function=function, version=version
        )
        task = verdict.task
        task.token = encode_token(token)
        task.version = version
        task.heartbeat_interval.FromMilliseconds(max(300, declared.heartbeat_timeout_ms // 3))
        await self._hand_out(session, declared, token, task)

    async def _hand_out(
        self, session: Session, declared: Declared, token: dispatch.FunctionToken, task: pb.Task
    ) -> None:
        held = Held(session, task.token, token)
        problem = arguments_problem(declared, task)
        if problem is not None:
            session.add_credit(1)
            self.credited(session)
            await self._report(held, dispatch.FunctionReport(outcome=failed(problem)))
            return
        if not session.open or session.draining:
            await self._tell_left(session, held, given_back=True)
            return
        session.held[task.token] = held
        self._held[held.key] = held
        _TASKS.labels("sent").inc()
        session.send(pb.ConnectResponse(task=task))

    # -- what function workers say ------------------------------------------------------------------------------------

    def beat(self, session: Session, heartbeat: pb.Heartbeat) -> None:
        """Passes a sign of life on; while one is on its way, only the newest after it."""
        held = self._hold(session, heartbeat.token)
        if held is None or held.settling:
            return
        beat = held.beat or dispatch.FunctionBeat()
        if heartbeat.HasField("progress_percent"):
            beat.progress_percent = min(100.0, max(0.0, heartbeat.progress_percent))
        if heartbeat.message:
            beat.message = heartbeat.message[:200]
        held.beat = beat
        if not held.beating:
            held.beating = True
            self._spawn(self._pass_beats(held))

    async def _pass_beats(self, held: Held) -> None:
        try:
            while held.beat is not None and not held.settling:
                beat, held.beat = held.beat, None
                verdict = await self._report(held, dispatch.FunctionReport(beat=beat))
                if held.settling:
                    return
                if verdict is not None and verdict.verdict != Verdict.VERDICT_ACCEPTED:
                    self._cancel(held, _reason(verdict))
                elif verdict is None and self._given_up(held):
                    self._cancel(held, "nobody waits for it any more")
        finally:
            held.beating = False

    def settle(self, session: Session, text: str, outcome: dispatch.FunctionOutcome) -> None:
        """Passes an outcome on and acknowledges it once the waiting worker has it.

        Without an answer there is no acknowledgement: the function worker says it again.
        """
        held = self._hold(session, text)
        if held is None or held.settling:
            return
        held.settling = True
        self._spawn(self._settle(held, outcome))

    async def _settle(self, held: Held, outcome: dispatch.FunctionOutcome) -> None:
        size = outcome.ByteSize()
        held.session.settling(size)
        try:
            await self._pass_outcome(held, outcome)
        finally:
            held.session.settling(-size)

    async def _pass_outcome(self, held: Held, outcome: dispatch.FunctionOutcome) -> None:
        report = dispatch.FunctionReport(outcome=outcome)
        for attempt in range(_OUTCOME_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S * attempt)
            try:
                verdict = await self._report(held, report)
            except MessageTooLarge:
                report = dispatch.FunctionReport(outcome=too_large(report.ByteSize(), self._bus.max_payload))
                continue
            if verdict is not None:
                accepted = verdict.verdict == Verdict.VERDICT_ACCEPTED
                self._acknowledge(held, accepted, "" if accepted else _reason(verdict))
                return
        held.settling = False
        if self._given_up(held):
            self._acknowledge(held, False, "nobody waits for it any more")

    def give_back(self, session: Session, text: str) -> None:
        """The function worker leaves and has not finished this one."""
        held = self._hold(session, text)
        if held is not None:
            self._forget(held)
            self._spawn(self._tell_left(session, held, given_back=True))

    def _hold(self, session: Session, text: str) -> Held | None:
        """The task that a function worker speaks of; None, and told so, when it cannot be its own."""
        held = session.held.get(text)
        if held is not None:
            return held
        token = decode_token(text)
        known = token is not None and (token.function, token.version) in session.functions
        if token is None or not known or len(session.held) >= _HELD:
            session.send(pb.ConnectResponse(cancel=pb.Cancel(token=text[:512], reason="not a task of this worker")))
            return None
        held = Held(session, text, token)
        session.held[text] = held
        self._held[held.key] = held
        return held

    def _forget(self, held: Held) -> None:
        held.session.held.pop(held.text, None)
        if self._held.get(held.key) is held:
            del self._held[held.key]

    def _acknowledge(self, held: Held, accepted: bool, reason: str) -> None:
        self._forget(held)
        _TASKS.labels("taken" if accepted else "late").inc()
        held.session.send(pb.ConnectResponse(ack=pb.Ack(token=held.text, accepted=accepted, reason=reason)))

    def _cancel(self, held: Held, reason: str) -> None:
        self._forget(held)
        _TASKS.labels("cancelled").inc()
        held.session.send(pb.ConnectResponse(cancel=pb.Cancel(token=held.text, reason=reason)))

    # -- what workers say ---------------------------------------------------------------------------------------------

    def _on_order(self, message: Message) -> None:
        try:
            order = dispatch.FunctionOrder.FromString(message.data)
        except DecodeError:
            _log.warning("function_order_unreadable", size=len(message.data))
            return
        held = self._held.get((order.call, order.dispatch))
        if held is not None and not held.settling:
            self._cancel(held, order.reason)

    async def _tell_left(self, session: Session, held: Held, *, given_back: bool) -> None:
        await self._report(held, dispatch.FunctionReport(left=dispatch.FunctionLeft(given_back=given_back)))

    async def _report(self, held: Held, report: dispatch.FunctionReport) -> dispatch.FunctionVerdict | None:
        """What the worker that waits says to a report; None when it says nothing now. Raises MessageTooLarge."""
        report.call = held.token.call
        report.dispatch = held.token.dispatch
        report.namespace = held.session.namespace
        report.gateway = self._token
        try:
            verdict = await self._ask(held.token.caller, report, _REPORT_TIMEOUT_S)
        except (NoResponders, BusTimeout):
            if held.unanswered_since is None:
                held.unanswered_since = time.monotonic()
            return None
        except MessageTooLarge:
            raise
        except BusError:  # this gateway's own connection: says nothing about the worker
            return None
        held.unanswered_since = None
        return verdict

    async def _ask(self, caller: str, report: dispatch.FunctionReport, timeout_s: float) -> dispatch.FunctionVerdict:
        answer = await self._bus.request(function_caller_subject(caller), report.SerializeToString(), timeout_s)
        return dispatch.FunctionVerdict.FromString(answer)

    @staticmethod
    def _given_up(held: Held) -> bool:
        since = held.unanswered_since
        return since is not None and time.monotonic() - since > _GIVE_UP_S

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="function-report")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("function_report_failed", exc_info=error)


def _reason(verdict: dispatch.FunctionVerdict) -> str:
    if verdict.verdict == Verdict.VERDICT_ELSEWHERE:
        return "the task was given to another function worker"
    return "nobody waits for it any more"
