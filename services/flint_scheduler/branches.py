"""Branch runs: the handler of awaits of kind BRANCHES, by which a run asks for the branches of a wide fork.

    opened ── chunks are accepted, up to the fork's window ──▶ one of them ends (fold): the parent's owner is nudged and
       ▲                                                    looks at the fork again
       └────────────────────────────────────────────────────┘
       when the outcomes decide the fork: one message into the parent's inbox, with the results of all
    closed ── chunks that still run are cancelled

Nothing is remembered here: which chunks there are, and how they ended, are rows of the record, so any scheduler goes on
at any time. A chunk starts once, by its request id, and only while the await is open; the answer is delivered once, by
its key in the inbox. An await that is not decided stays unserved, and the sweep tells of it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Final

import orjson

from flint_bus import Bus, BusError
from flint_bus.subjects import hints_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.branches import BranchesRequest, branch_input, join, request_of
from flint_core.ids import run_id_text
from flint_core.queueing import QueueHints
from flint_ops.logging import get_logger
from flint_scheduler.accept import Acceptor, NewStart
from flint_scheduler.lane import LaneClosed
from flint_scheduler.nudges import nudge_inboxes
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record
from flint_store.accept import Parent
from flint_store.awaits import AwaitRow, NewMessage, Target, put_messages
from flint_store.branches import (
    BranchState,
    Fork,
    branch_request_id,
    read_branches,
    read_forks,
    read_outcomes,
    running_branches,
)
from flint_store.sweep import put_inbox

__all__ = ["BranchRuns"]

log = get_logger(__name__)

_ENDED: Final = (runs_pb2.Run.STATE_SUCCEEDED, runs_pb2.Run.STATE_FAILED, runs_pb2.Run.STATE_CANCELLED)
_REASON: Final = b"the fork that it belongs to is over"
_STARTS: Final = 500
"""Chunks that one look at the forks starts; the next look goes on."""
_NO_LIMIT: Final = 2**62
"""Branch runs are parts of a run: the limit of runs in a tree is not for them."""


class BranchRuns:
    """Starts, joins and cancels the branch runs of forks, for one scheduler."""

    def __init__(self, record: Record, bus: Bus, acceptor: Acceptor, queue: ReadyQueue, queue_limit: int) -> None:
        self._record = record
        self._bus = bus
        self._acceptor = acceptor
        self._queue = queue
        self._queue_limit = queue_limit

    async def opened(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """Go on with these forks. Those that are not decided are looked at again."""
        forks = await self._record.read(partial(read_forks, run_ids=list({r.run_id for r in rows})))
        known = await self._record.read(partial(read_branches, forks=[(r.run_id, r.key) for r in rows]))
        starts: list[NewStart] = []
        later: list[AwaitRow] = []
        answers: list[NewMessage] = []
        for row in rows:
            fork = forks.get(row.run_id)
            if fork is None:
                continue  # the run is gone, and with it whoever could be answered
            request = request_of(orjson.loads(row.request))
            chunks = known.get((row.run_id, row.key), [])
            answer = await self._decided(row, request, chunks)
            if answer is not None:
                answers.append(NewMessage(row.run_id, f"run/{row.key}", row.key, answer))
                continue
            later.append(row)
            self._tell(row, request, chunks)
            room = min(request.window - sum(not c.ended for c in chunks), _STARTS - len(starts))
            there = {c.number for c in chunks}
            for number in range(request.chunks):
                if room <= 0:
                    break
                if number not in there:
                    starts.append(_start(row, fork, request, number))
                    room -= 1
        if starts and len(self._queue) + self._acceptor.waiting_starts + len(starts) <= self._queue_limit:
            try:
                # Each is stored unless it is there, or its await is closed: in either case there is nothing to do.
                await self._acceptor.accept(starts, "")
            except LaneClosed as error:
                log.info("branches_wait", error=str(error))
        if answers:
            nudge_inboxes(self._bus, await self._record.read(lambda c: put_messages(c, answers)))
        return later

    async def _decided(self, row: AwaitRow, request: BranchesRequest, chunks: Sequence[BranchState]) -> bytes | None:
        """The answer, if what has ended decides the fork."""
        ended = [c for c in chunks if c.ended]
        succeeded = [c for c in ended if c.state == _ENDED[0]]
        may_be = (
            len(ended) == request.chunks
            or any(c.final for c in succeeded)
            or (succeeded if request.compete else len(succeeded) < len(ended))
        )
        if not may_be:
            return None
        answer = join(request, await self._record.read(partial(read_outcomes, run_id=row.run_id, key=row.key)))
        return None if answer is None else orjson.dumps(answer)

    def _tell(self, row: AwaitRow, request: BranchesRequest, chunks: Sequence[BranchState]) -> None:
        """Show those who watch the run how far the fork is. A hint: nothing depends on it."""
        done = sum(c.count for c in chunks if c.ended)
        if not done:
            return
        step = runs_pb2.StepRecord(
            step=row.step,
            iteration=row.iteration,
            attempt=1,
            state=runs_pb2.StepRecord.STATE_WAITING,
            provisional=True,
            progress_percent=100 * done / request.count,
            progress_message=f"{done} of {request.count} branches have ended",
        )
        step.start_time.FromDatetime(row.opened_at)
        try:
            hints = dispatch_pb2.StepHints(steps=[step])
            self._bus.publish_now(hints_subject(run_id_text(row.run_id)), hints.SerializeToString())
        except BusError as error:
            log.debug("hint_lost", error=str(error))

    async def closed(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """Cancel the branch runs of forks that are over."""
        names = [(row.run_id, row.key) for row in rows]
        running = await self._record.read(partial(running_branches, forks=names))
        for namespace, run_ids in running.items():
            cancel = partial(
                put_inbox, namespace=namespace, run_ids=run_ids, kind="cancel", key="cancel", payload=_REASON
            )
            told = await self._record.read(cancel)
            nudge_inboxes(self._bus, [Target(r, group) for r, (group, state) in told.items() if state not in _ENDED])
        return ()


def _start(row: AwaitRow, fork: Fork, request: BranchesRequest, number: int) -> NewStart:
    request_id = branch_request_id(row.run_id, row.key, request.chunk(number))
    return NewStart(
        namespace=row.namespace,
        workflow_id=fork.workflow_id,
        version=fork.version,
        definition_id=fork.definition_id,
        definition_hash=fork.definition_hash,
        level=fork.level,
        request_id=request_id,
        request_hash=blake2b(request_id.encode(), digest_size=16).digest(),
        trace_id=fork.trace_id,
        input=orjson.dumps(branch_input(request, number)),
        parent=Parent(row.run_id, row.key, True, fork.depth, fork.root, _NO_LIMIT),
        hints=_hints(fork.hints),
    )


def _hints(hints: QueueHints | None) -> QueueHints | None:
    """What branch runs ask of the queue: where and by when. The run holds its permits for them all."""
    if hints is None:
        return None
    mine = replace(hints, not_before_ms=0, latest_start_ms=0, off_peak=False, window=None, concurrency=(), rates=())
    return None if mine == QueueHints() else mine
