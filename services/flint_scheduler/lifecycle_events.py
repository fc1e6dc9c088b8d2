"""Lifecycle CloudEvents: what became of runs and tasks, for those who follow it.

States: OFF (by configuration) · IDLE (nobody follows: one comparison per change of a run, nothing is built) · FEEDING
(a gateway has said within the last minute that somebody follows a namespace: each commit's changes go out as one
message for each such namespace). Events are built after the commit, from what it changed; they are never kept, and one
that is lost is lost: who needs the record reads it. With `events.lifecycle_to_listen` they are also stored like
published events, so that `listen` gets them.

Names and data follow the specification's «Lifecycle Events» (DSL 1.0.3). Flint has no manual suspension, so nothing is
ever `suspended` or `resumed`; a run that waits has the status `waiting`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

import orjson
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from flint_bus import Bus, BusError, Message
from flint_bus.subjects import LIFECYCLE_INTEREST, lifecycle_subject
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.scheduling.v1 import events_pb2 as pb
from flint_core.cloud_events import LIFECYCLE_PREFIX
from flint_ops.logging import get_logger
from flint_rpc.errors import Refused
from flint_scheduler.announce import Ending
from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.events import EventDesk
from flint_scheduler.metrics import EVENTS

__all__ = ["LifecycleFeed"]

log = get_logger(__name__)

_INTEREST_S: Final = 60.0
_NAMESPACES: Final = 10_000
_MESSAGE_BYTES: Final = 512 * 1024
_STORED_AT_ONCE: Final = 500
_STORED_QUEUE: Final = 20_000
_OUTPUT_BYTES: Final = 65_536  # larger outputs are left out of events

_RUN = runs_pb2.Run
_STEP = runs_pb2.StepRecord
_ENDS: Final[dict[int, str]] = {
    _RUN.STATE_SUCCEEDED: "completed",
    _RUN.STATE_FAILED: "faulted",
    _RUN.STATE_CANCELLED: "cancelled",
}
_STATUSES: Final = {Phase.WAITING: "waiting", Phase.READY: "pending"}
_STEP_ENDS: Final[dict[int, str]] = {
    _STEP.STATE_SUCCEEDED: "completed",
    _STEP.STATE_FAILED: "faulted",
    _STEP.STATE_CANCELLED: "cancelled",
}


class LifecycleFeed:
    """Told of every change by the announcer; see the module."""

    def __init__(self, bus: Bus, level: Literal["off", "runs", "tasks"], desk: EventDesk | None) -> None:
        """`desk`: where events are stored for `listen`; None leaves that out."""
        self._bus = bus
        self._off = level == "off"
        self._tasks = level == "tasks"
        self._desk = None if self._off else desk
        self._until: dict[str, float] = {}
        self._outgoing: dict[str, list[bytes]] = {}
        self._stored: deque[tuple[str, bytes]] = deque()
        self._wake = asyncio.Event()
        self.active = self._desk is not None
        """Whether `changed` has anything to do: read before each call."""

    @property
    def wants_steps(self) -> bool:
        """Whether the steps of changes are needed."""
        return self.active and self._tasks

    async def open(self) -> None:
        """Hear who follows."""
        if not self._off:
            await self._bus.subscribe(LIFECYCLE_INTEREST, self._interested)

    def _interested(self, message: Message) -> None:
        interest = pb.LifecycleInterest()
        try:
            interest.ParseFromString(message.data)
        except DecodeError:
            log.warning("lifecycle_interest_undecodable")
            return
        until = asyncio.get_running_loop().time() + _INTEREST_S
        for namespace in interest.namespaces:
            if namespace in self._until or len(self._until) < _NAMESPACES:
                self._until[namespace] = until
        self.active = bool(self._until) or self._desk is not None

    def tick(self) -> None:
        """Forget those who follow no more."""
        now = asyncio.get_running_loop().time()
        for namespace in [n for n, until in self._until.items() if until <= now]:
            del self._until[namespace]
        self.active = bool(self._until) or self._desk is not None

    # -- changes -------------------------------------------------------------------------------------------------------

    def opened(self, card: RunCard) -> None:
        """A leg of the run was opened. Call only while `active`."""
        if card.namespace in self._until or self._desk is not None:
            self._note(card.namespace, _Builder(card).of_opening())

    def changed(self, card: RunCard, steps: Sequence[runs_pb2.StepRecord], ending: Ending | None) -> None:
        """Note one change of a run, just committed. Call only while `active`."""
        namespace = card.namespace
        if namespace not in self._until and self._desk is None:
            return
        builder = _Builder(card)
        events: list[bytes] = []
        if self._tasks:
            for number, step in enumerate(steps):
                events += builder.of_step(step, number)
        self._note(namespace, events + builder.of_change(ending))

    def _note(self, namespace: str, events: list[bytes]) -> None:
        if namespace in self._until:
            self._outgoing.setdefault(namespace, []).extend(events)
        if self._desk is not None:
            room = _STORED_QUEUE - len(self._stored)
            self._stored.extend((namespace, data) for data in events[: max(0, room)])
            if room < len(events):
                EVENTS.labels("lifecycle_dropped").inc(len(events) - max(0, room))
            self._wake.set()

    def flush(self) -> None:
        """Publish what was noted: one message a namespace, several where it would be too large."""
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, {}
        for namespace, events in outgoing.items():
            batch: list[bytes] = []
            size = 0
            for data in events:
                if batch and size + len(data) > _MESSAGE_BYTES:
                    self._send(namespace, batch)
                    batch, size = [], 0
                batch.append(data)
                size += len(data)
            self._send(namespace, batch)

    def _send(self, namespace: str, events: list[bytes]) -> None:
        if not events:
            return
        try:
            self._bus.publish_now(lifecycle_subject(namespace), pb.LifecycleEvents(events=events).SerializeToString())
        except BusError as error:
            log.debug("lifecycle_events_lost", namespace=namespace, error=str(error))

    async def run(self) -> None:
        """Store events for `listen`, for ever; idle unless that is configured."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._stored and self._desk is not None:
                parts: dict[str, list[bytes]] = {}
                for _ in range(min(_STORED_AT_ONCE, len(self._stored))):
                    namespace, data = self._stored.popleft()
                    parts.setdefault(namespace, []).append(data)
                for namespace, events in parts.items():
                    try:
                        await self._desk.store(pb.StoreEventsRequest(namespace=namespace, events=events))
                    except Refused as refused:
                        EVENTS.labels("lifecycle_dropped").inc(len(events))
                        log.warning("lifecycle_events_not_stored", namespace=namespace, error=str(refused))


class _Builder:
    """Makes the events of one change of one run. Ids are made of the change: a repeat has the same."""

    __slots__ = ("_card", "_change", "_common", "_definition", "_name")

    def __init__(self, card: RunCard) -> None:
        self._card = card
        # What a branch run tells of is the run's whose fork it belongs to: its steps, and nothing else.
        self._change = f"{UUID(bytes=card.run_id)}/{card.change}"
        run = str(UUID(bytes=card.parent_run_id if card.is_branch and card.parent_run_id else card.run_id))
        self._definition = {"namespace": card.namespace, "name": card.workflow_id, "version": card.version}
        self._name = f"{card.workflow_id}-{run}.{card.namespace}"
        self._common = {
            "specversion": "1.0",
            "source": f"/namespaces/{card.namespace}/workflows/{card.workflow_id}",
            "subject": run,
            "datacontenttype": "application/json",
        }

    def of_opening(self) -> list[bytes]:
        """A leg was opened: the run has started, or goes on."""
        card = self._card
        if card.is_branch:
            return []
        events: list[bytes] = []
        at = _moment(card.started_ms if card.leg == 1 and card.started_ms else _now_ms())
        if card.leg == 1:
            data = {"name": self._name, "definition": self._definition, "startedAt": at}
            events.append(self._event("workflow.started.v1", at, data, "started"))
        events.append(self._status("running", at))
        return events

    def of_change(self, ending: Ending | None) -> list[bytes]:
        """The run has ended, or its leg has: it waits for something, or for another worker."""
        if self._card.is_branch:
            return []
        if ending is None:
            status = _STATUSES.get(self._card.phase)
            return [self._status(status, _moment(_now_ms()))] if status is not None else []
        kind = _ENDS[ending.state]
        at = _moment(ending.at_ms)
        data: dict[str, Any] = {"name": self._name, "definition": self._definition, f"{kind}At": at}
        if ending.error is not None:
            data["error"] = _problem(ending.error)
        if ending.state == _RUN.STATE_SUCCEEDED and ending.output and len(ending.output) <= _OUTPUT_BYTES:
            data["output"] = orjson.Fragment(ending.output)
        return [self._event(f"workflow.{kind}.v1", at, data, kind), self._status(kind, at)]

    def _status(self, status: str, at: str) -> bytes:
        data = {"name": self._name, "definition": self._definition, "updatedAt": at, "status": status}
        return self._event("workflow.status-changed.v1", at, data, "status")

    def of_step(self, step: runs_pb2.StepRecord, number: int) -> list[bytes]:
        events: list[bytes] = []
        common = {"workflow": self._name, "task": step.step}
        if step.iteration:
            common["iteration"] = step.iteration
        if step.state == _STEP.STATE_SKIPPED:
            return events
        if step.HasField("start_time"):
            at = _stamp(step.start_time)
            if step.attempt > 1:
                events.append(self._event("task.retried.v1", at, {**common, "retriedAt": at}, f"{number}/retried"))
            else:
                events.append(self._event("task.created.v1", at, {**common, "createdAt": at}, f"{number}/created"))
                events.append(self._event("task.started.v1", at, {**common, "startedAt": at}, f"{number}/started"))
        kind = _STEP_ENDS.get(step.state)
        if kind is not None:
            at = _stamp(step.end_time) if step.HasField("end_time") else _moment(_now_ms())
            data: dict[str, Any] = {**common, f"{kind}At": at}
            if step.HasField("error"):
                data["error"] = _problem(step.error)
            events.append(self._event(f"task.{kind}.v1", at, data, f"{number}/{kind}"))
        return events

    def _event(self, kind: str, at: str, data: dict[str, Any], part: str) -> bytes:
        return orjson.dumps(
            {
                **self._common,
                "type": LIFECYCLE_PREFIX + kind,
                "id": f"{self._change}/{part}",
                "time": at,
                "data": data,
            }
        )


def _problem(problem: runs_pb2.Problem) -> dict[str, Any]:
    found: dict[str, Any] = {"type": problem.type, "title": problem.title, "status": problem.status}
    if problem.detail:
        found["detail"] = problem.detail
    if problem.instance:
        found["instance"] = problem.instance
    return found


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _stamp(stamp: Timestamp) -> str:
    return _moment(stamp.seconds * 1000 + stamp.nanos // 1_000_000)


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)
