"""The legs of one incarnation: what was taken, what runs, what waits for a slot, what was released (R4, R6).

A job is taken once for the incarnation's life. Owners number their jobs densely per session and worker and send the
number up to which all are settled: so what must be remembered of the taken ones stays small. Nonces that were released
before their job came are remembered, so that the job is refused when it does come.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Final

from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.queueing import URGENT, slots_beyond
from flint_ops.logging import get_logger
from flint_worker.figures import FIGURES
from flint_worker.leg import Leg
from flint_worker.telemetry import JOBS_REFUSED, LEGS_ENDED, LEGS_RUNNING, LEGS_WAITING

__all__ = ["LegTable"]

_REVOKED_LIMIT: Final = 200_000
_CANCELS_LIMIT: Final = 10_000
_EARLY_LIMIT: Final = 1_000
_EARLY_BYTES: Final = 65_536
"""Legs whose messages are kept until their job comes, and how large; beyond these the owner delivers again."""
_INBOX_LIMIT: Final = 1_000
_INBOX_BYTES: Final = 4 * 2**20
"""Messages that are kept for a leg while it waits for a slot; beyond these the owner delivers again."""
_SESSION_LIMIT: Final = 10_000

_log = get_logger("flint_worker.table")


class _Session:
    """What one owner session has sent."""

    __slots__ = ("taken", "watermark")

    def __init__(self) -> None:
        self.watermark = 0
        self.taken: OrderedDict[int, bytes] = OrderedDict()


class LegTable:
    """All legs of one incarnation. `make` builds a leg for a job that was taken."""

    def __init__(self, incarnation: str, slots: int, make: Callable[[dispatch_pb2.Job], Leg]) -> None:
        self._incarnation = incarnation
        self._slots = slots
        self._urgent_slots = slots + slots_beyond(slots)
        self._waiting_limit = slots * 4 + 1000
        self._make = make
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._taken: set[bytes] = set()
        self._revoked: OrderedDict[bytes, None] = OrderedDict()
        self._cancels: OrderedDict[bytes, None] = OrderedDict()
        self._early: OrderedDict[bytes, list[dispatch_pb2.InboxMessage]] = OrderedDict()
        self._waiting: OrderedDict[bytes, dispatch_pb2.Job] = OrderedDict()
        self._running: dict[bytes, Leg] = {}
        self._draining = False
        self._closed = False
        LEGS_RUNNING.set_function(lambda: len(self._running))  # read when somebody asks, not told at each change
        LEGS_WAITING.set_function(lambda: len(self._waiting))
        self.idle = asyncio.Event()
        """Set while it holds no leg."""
        self.busy = asyncio.Event()
        """Set while it holds any."""
        self.idle.set()

    @property
    def held(self) -> int:
        """Legs it holds, running or waiting for a slot."""
        return len(self._running) + len(self._waiting)

    @property
    def running(self) -> Iterable[Leg]:
        """Legs that run."""
        return self._running.values()

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def offer(self, job: dispatch_pb2.Job) -> bool:
        """Takes a job, or refuses it: addressed to another incarnation, taken before, settled, revoked, or too many."""
        reason = self._refusal(job)
        if reason:
            JOBS_REFUSED.labels(reason).inc()
            return False
        self._remember(job)
        nonce = job.leg_nonce
        if self._cancels and nonce in self._cancels:
            del self._cancels[nonce]
            job.cancel_requested = True
        if self._early:
            job.inbox.extend(self._early.pop(nonce, ()))
        if self._has_slot(job.level) or self._draining:
            self._start(nonce, job)
        else:
            self._waiting[nonce] = job
        if self.idle.is_set():
            self.idle.clear()
            self.busy.set()
        return True

    def _refusal(self, job: dispatch_pb2.Job) -> str:
        if self._closed or job.claimant != self._incarnation:
            return "incarnation"
        nonce = job.leg_nonce
        if nonce in self._taken:
            return "taken"
        if nonce in self._revoked:
            return "revoked"
        session = self._sessions.get(job.owner_session)
        if session is not None and job.sequence and job.sequence <= session.watermark:
            return "settled"
        if len(self._waiting) >= self._waiting_limit:
            return "full"
        return ""

    def _remember(self, job: dispatch_pb2.Job) -> None:
        self._taken.add(job.leg_nonce)
        if not job.sequence:
            return
        session = self._sessions.get(job.owner_session)
        if session is None:
            session = self._sessions[job.owner_session] = _Session()
            if len(self._sessions) > _SESSION_LIMIT:
                _, oldest = self._sessions.popitem(last=False)
                self._taken.difference_update(oldest.taken.values())
        session.taken[job.sequence] = job.leg_nonce
        if job.watermark > session.watermark:
            session.watermark = job.watermark
            while session.taken:
                sequence, nonce = next(iter(session.taken.items()))
                if sequence > session.watermark:
                    break
                del session.taken[sequence]
                self._taken.discard(nonce)

    def _has_slot(self, level: int) -> bool:
        return len(self._running) < (self._urgent_slots if level == URGENT else self._slots)

    def _level(self, nonce: bytes) -> int:
        return self._waiting[nonce].level

    def _start(self, nonce: bytes, job: dispatch_pb2.Job) -> None:
        leg = self._make(job)
        self._running[nonce] = leg
        if self._draining:
            leg.drain()
        began = monotonic()
        leg.start().add_done_callback(lambda task: self._ended(nonce, leg, task, began))

    def _ended(self, nonce: bytes, leg: Leg, task: asyncio.Task[str], began: float) -> None:
        FIGURES.add_leg(monotonic() - began)
        if task.cancelled():
            outcome = "dropped"
        elif (error := task.exception()) is not None:
            outcome = "defect"
            _log.error("leg_task_died", run=leg.run_id, trace_id=leg.job.trace_id.hex(), exc_info=error)
        else:
            outcome = task.result()
        LEGS_ENDED.inc(outcome)
        if self._running.get(nonce) is leg:
            del self._running[nonce]
        while self._waiting and len(self._running) < self._urgent_slots and not self._closed:
            nonce = min(self._waiting, key=self._level)  # of those alike, the first that came
            if not self._has_slot(self._level(nonce)):
                break
            self._start(nonce, self._waiting.pop(nonce))
        self._look_idle()

    def _look_idle(self) -> None:
        if not self._running and not self._waiting:
            self.busy.clear()
            self.idle.set()

    # -- commands -----------------------------------------------------------------------------------------------------

    def release(self, nonce: bytes, journal_lost: bool) -> bool:
        """True: the leg is not here, or could not begin yet; it never will begin again.

        A leg that waits for a slot is kept: another worker would not begin it sooner for being asked. With
        `journal_lost` every leg is given up, one that has begun as soon as nothing of it is in progress.
        """
        if nonce in self._waiting and not journal_lost:
            return False
        leg = self._running.get(nonce)
        if leg is not None and leg.begun:
            if not journal_lost:
                return False
            leg.give_up()
            if leg.in_progress:
                return False
        if leg is not None:
            leg.drop()
        elif self._waiting.pop(nonce, None) is not None:
            self._look_idle()
        self._revoked[nonce] = None
        if len(self._revoked) > _REVOKED_LIMIT:
            self._revoked.popitem(last=False)
        return True

    def release_waiting(self, nonces: Sequence[bytes], at_most: int) -> list[bool]:
        """Let go of legs that wait for a slot: at most so many, the most urgent first. They never begin here."""
        waiting = sorted((nonce for nonce in nonces if nonce in self._waiting), key=self._level)
        chosen = set(waiting[:at_most])
        for nonce in chosen:
            self.drop(nonce)
        return [nonce in chosen for nonce in nonces]

    def cancel(self, nonce: bytes, grace_ms: int = 0) -> None:
        """The run is to end early; calls in progress may go on for the grace. A leg that waits begins now, to end.

        A cancel may overtake its job, which takes the longer way: it is remembered for it.
        """
        job = self._waiting.pop(nonce, None)
        if job is not None:
            job.cancel_requested = True
            self._start(nonce, job)
            return
        leg = self._running.get(nonce)
        if leg is not None:
            leg.request_cancel(grace_ms)
        elif nonce not in self._taken and nonce not in self._revoked:
            self._cancels[nonce] = None
            if len(self._cancels) > _CANCELS_LIMIT:
                self._cancels.popitem(last=False)

    def pause(self, nonce: bytes) -> None:
        """The run is to be given back at the leg's next boundary. Ignored for a leg that is not here: asked again."""
        job = self._waiting.pop(nonce, None)
        if job is not None:
            self._start(nonce, job)
        leg = self._running.get(nonce)
        if leg is not None:
            leg.pause()

    def give_back(self) -> None:
        """Every run is given back like one that is paused; the worker stays, and takes what comes to it afterwards."""
        for nonce in (*self._waiting, *self._running):
            self.pause(nonce)

    def drop(self, nonce: bytes) -> None:
        """The run has ended without this leg: stop it at once, and never begin it."""
        leg = self._running.get(nonce)
        if leg is not None:
            leg.drop()
        elif self._waiting.pop(nonce, None) is not None:
            self._look_idle()
        self._revoked[nonce] = None
        if len(self._revoked) > _REVOKED_LIMIT:
            self._revoked.popitem(last=False)

    def deliver(self, nonce: bytes, messages: Sequence[dispatch_pb2.InboxMessage]) -> None:
        """Messages for a leg's awaits, in order of arrival; the leg ignores those that it has seen.

        They may overtake the leg's job, and are kept for it then. A leg that is over gets none: they stay in the run's
        inbox for the next one.
        """
        job = self._waiting.get(nonce)
        leg = self._running.get(nonce)
        if job is not None:
            _add_unseen(job, messages)
        elif leg is not None:
            leg.deliver(messages)
        elif nonce not in self._taken and nonce not in self._revoked:
            if sum(len(message.content) for message in messages) > _EARLY_BYTES:
                return
            self._early[nonce] = list(messages)  # delivered anew from the first that is not consumed
            if len(self._early) > _EARLY_LIMIT:
                self._early.popitem(last=False)

    def drain(self) -> None:
        """Every leg gives its run back at its next boundary; those that wait do so at once."""
        self._draining = True
        for leg in list(self._running.values()):
            leg.drain()
        while self._waiting:
            self._start(*self._waiting.popitem(last=False))

    def drop_all(self) -> list[asyncio.Task[str]]:
        """Stops everything at once, nothing more is begun or appended. Returns the tasks that are ending."""
        self._closed = True
        self._waiting.clear()
        tasks = []
        for leg in list(self._running.values()):
            leg.drop()
            if leg.task is not None:
                tasks.append(leg.task)
        return tasks


def _add_unseen(job: dispatch_pb2.Job, messages: Sequence[dispatch_pb2.InboxMessage]) -> None:
    """The owner delivers from the first that is not consumed, again and again while the leg waits.

    What does not fit is left out from there on, so that the order of arrival stays.
    """
    known = {message.key for message in job.inbox}
    size = sum(len(message.content) for message in job.inbox)
    for message in messages:
        if message.key in known:
            continue
        size += len(message.content)
        if job.inbox and (len(job.inbox) >= _INBOX_LIMIT or size > _INBOX_BYTES):
            return
        known.add(message.key)
        job.inbox.append(message)
