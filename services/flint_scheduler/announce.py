"""Announcing: what a commit changed goes to those who watch, after the commit and never before it.

Watchers are subjects of core NATS. A gateway that started a run hears of its end; others ask by an interest, for the
end or for every change, which lasts a minute unless renewed. Changes are dense by the run's change number: a watcher
that misses one sees the gap and reads again. Interests are memory only: after a takeover the gateways send them anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from flint_bus import Bus, BusError
from flint_bus.subjects import RESETS
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.ids import run_id_text
from flint_ops.logging import get_logger
from flint_scheduler.cards import RunCard
from flint_store.branches import branch_range

if TYPE_CHECKING:
    from flint_scheduler.lifecycle_events import LifecycleFeed

__all__ = ["Announcer", "Ending"]

log = get_logger(__name__)

_INTEREST_S = 60.0
_STARTER_S = 600.0
_MAX_INTERESTS = 100_000
_MAX_MESSAGE_BYTES = 512 * 1024
_SUCCEEDED = runs_pb2.Run.STATE_SUCCEEDED


class Ending:
    """How a run ended, for its announcement."""

    __slots__ = ("at_ms", "error", "output", "state")

    def __init__(
        self,
        state: runs_pb2.Run.State.ValueType,
        at_ms: int,
        output: bytes = b"",
        error: runs_pb2.Problem | None = None,
    ) -> None:
        self.state = state
        self.at_ms = at_ms
        self.output = output
        self.error = error


class Announcer:
    """Collects changes of one commit and publishes them per watcher. `flush` after each commit."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._interests: dict[bytes, dict[str, tuple[float, bool]]] = {}
        self._starters: dict[bytes, tuple[float, str]] = {}  # of runs that wait: until when, who started them
        self._outgoing: dict[str, list[bytes]] = {}  # batches of one change each: concatenated they are one of all
        self.feed: LifecycleFeed | None = None
        """Told of every change while somebody follows lifecycle events."""

    def interested(self, interest: dispatch_pb2.Interest) -> None:
        """Add or renew a watch."""
        if len(self._interests) >= _MAX_INTERESTS and interest.run_id not in self._interests:
            self._expire()
            if len(self._interests) >= _MAX_INTERESTS:
                return  # the gateway's own reading every few seconds serves the watcher
        until = asyncio.get_running_loop().time() + _INTEREST_S
        self._interests.setdefault(interest.run_id, {})[interest.watcher] = (until, interest.steps)

    @property
    def watched(self) -> bool:
        """Whether anybody watches any run."""
        return bool(self._interests) or (self.feed is not None and self.feed.active)

    def follows(self, run_id: bytes) -> bool:
        """Whether anybody is told of each of the run's changes."""
        if self.feed is not None and self.feed.active:
            return True
        interests = self._interests.get(run_id)
        return interests is not None and any(every for _, every in interests.values())

    def wants_steps(self, run_id: bytes) -> bool:
        """Whether anybody watches the run's steps."""
        if self.feed is not None and self.feed.wants_steps:
            return True
        interests = self._interests.get(run_id)
        return interests is not None and any(every for _, every in interests.values())

    def changed(self, card: RunCard, steps: Sequence[runs_pb2.StepRecord], ending: Ending | None = None) -> None:
        """Note one change of a run, just committed."""
        if self.feed is not None and self.feed.active:
            self.feed.changed(card, steps, ending)
        subjects: list[str] = []
        interests = self._interests.get(card.run_id)
        if interests:
            now = asyncio.get_running_loop().time()
            subjects = [s for s, (until, every) in interests.items() if until > now and (every or ending is not None)]
            if ending is not None:
                del self._interests[card.run_id]
        if ending is not None:
            if self._starters and (kept := self._starters.pop(card.run_id, None)) is not None:
                card.watcher = kept[1]
            if card.watcher and card.watcher not in subjects:
                subjects.append(card.watcher)
        if not subjects:
            return
        batch = dispatch_pb2.ChangeBatch()
        change = batch.changes.add()
        _tell(change.run, card, ending)
        if steps:
            change.steps.extend(steps)
        data = batch.SerializeToString()
        for subject in subjects:
            self._outgoing.setdefault(subject, []).append(data)

    def waits(self, card: RunCard) -> None:
        """The run waits, and its card may be dropped: whoever started it is told of its end all the same.

        For ten minutes; after that the gateways' own reading finds the end.
        """
        if card.watcher and len(self._starters) < _MAX_INTERESTS:
            self._starters[card.run_id] = asyncio.get_running_loop().time() + _STARTER_S, card.watcher

    def takes_back(self, card: RunCard, change: int) -> None:
        """A commit follows that takes the run back, as this change: gateways forget the end that they know."""
        run = runs_pb2.Run(name=_name(card), change=change)
        batch = dispatch_pb2.ChangeBatch(changes=[runs_pb2.RunChange(run=run)])
        self._send(RESETS, batch.SerializeToString())

    def opened(self, card: RunCard, *, with_start: bool = False) -> None:
        """A leg was opened by a commit of its own; `with_start`: by the one that stored the run, which is no change."""
        if self.feed is not None and self.feed.active:
            self.feed.opened(card)
        if not with_start:
            self.changed(card, [])

    def flush(self) -> None:
        """Publish what was noted."""
        if self.feed is not None and self.feed.active:
            self.feed.flush()
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, {}
        for subject, changes in outgoing.items():
            first = size = 0
            for place, change in enumerate(changes):
                if size and size + len(change) > _MAX_MESSAGE_BYTES:
                    self._send(subject, b"".join(changes[first:place]))
                    first, size = place, 0
                size += len(change)
            self._send(subject, b"".join(changes[first:]))

    def _send(self, subject: str, batch: bytes) -> None:
        try:
            self._bus.publish_now(subject, batch)
        except BusError as error:
            log.debug("announcement_lost", subject=subject, error=str(error))  # watchers read again on the gap

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        for run_id in list(self._interests):
            alive = {s: i for s, i in self._interests[run_id].items() if i[0] > now}
            if alive:
                self._interests[run_id] = alive
            else:
                del self._interests[run_id]

    def tick(self) -> None:
        """Forget watches that were not renewed."""
        self._expire()
        if self._starters:
            now = asyncio.get_running_loop().time()
            self._starters = {run_id: kept for run_id, kept in self._starters.items() if kept[0] > now}
        if self.feed is not None:
            self.feed.tick()


def _stamp(time: Timestamp, ms: int) -> None:
    time.seconds, rest = divmod(ms, 1000)
    if rest:
        time.nanos = rest * 1_000_000


def _name(card: RunCard) -> str:
    return f"namespaces/{card.namespace}/runs/{run_id_text(card.run_id)}"


def _tell(run: runs_pb2.Run, card: RunCard, ending: Ending | None) -> None:
    """Fill the run as it is."""
    namespace = card.namespace
    run.name = _name(card)
    run.workflow = f"namespaces/{namespace}/workflows/{card.workflow_id}/versions/{card.version}"
    run.state = ending.state if ending is not None else card.state
    run.level = card.level
    _stamp(run.create_time, card.created_ms)
    run.leg = card.leg
    run.position = card.position
    run.change = card.change
    run.trace_id = card.trace_id.hex()
    if card.cancel_requested:
        run.cancel_requested = True
    if card.request_id and not card.request_id.startswith("~"):
        run.request_id = card.request_id
    elif card.request_id and (branches := branch_range(namespace, card.request_id)) is not None:
        run.branches.CopyFrom(branches)
    if card.started_ms:
        _stamp(run.start_time, card.started_ms)
    if ending is not None:
        _stamp(run.end_time, ending.at_ms)
        if ending.state == _SUCCEEDED:
            run.output = ending.output
        if ending.error is not None:
            run.error.CopyFrom(ending.error)
        return
    if card.claimant:
        run.worker = card.claimant
    if card.wake_at_ms:
        _stamp(run.wake_time, card.wake_at_ms)
