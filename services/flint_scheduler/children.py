"""Child runs: the handler of awaits of kind RUN.

    opened ── accepted like any start, under a request id made of the await ──▶ the child's end answers the await (fold)
       └───── detached: answered «started» at once · not to be started: answered «refused», with the problem
    closed ── a child that somebody waited for and that has not ended is cancelled

The request id makes a repeated start the same run; the insert happens only while the await is open and holds it open
until the commit, so a child that nobody waits for is never started, and one that is started is found when the await
is closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import orjson

from flint_bus import Bus
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from flint_core.ids import run_id_text
from flint_core.problems import Problem, ProblemType
from flint_ops.config import LimitSettings
from flint_ops.logging import get_logger
from flint_rpc.errors import Refused
from flint_scheduler.accept import Acceptor, NewStart
from flint_scheduler.answers import child_refused, child_started
from flint_scheduler.lane import LaneClosed
from flint_scheduler.nudges import nudge_inboxes
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record
from flint_scheduler.starts import resolve_start
from flint_store.accept import Accepted, Parent
from flint_store.awaits import AwaitRow, NewMessage, Target, put_messages
from flint_store.children import ParentFacts, find_children, read_parents
from flint_store.definitions import DefinitionCache
from flint_store.errors import NamespaceNotFound, StoreUnavailable, VersionInvalid, WorkflowNotFound
from flint_store.sweep import put_inbox

__all__ = ["ChildRuns"]

log = get_logger(__name__)

_PREFIX: Final = "~await/"  # clients cannot use it and do not see it
_REASON: Final = b"the run that started it does not wait for it any more"
_ENDED: Final = (runs_pb2.Run.STATE_SUCCEEDED, runs_pb2.Run.STATE_FAILED, runs_pb2.Run.STATE_CANCELLED)


class _Refusal(Exception):
    """The child is not to be started."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


@dataclass(slots=True)
class _Start:
    row: AwaitRow
    detached: bool
    start: NewStart


class ChildRuns:
    """Starts and cancels the children of runs, for one scheduler."""

    def __init__(
        self,
        record: Record,
        bus: Bus,
        definitions: DefinitionCache,
        acceptor: Acceptor,
        queue: ReadyQueue,
        limits: LimitSettings,
        queue_limit: int,
    ) -> None:
        self._record = record
        self._bus = bus
        self._definitions = definitions
        self._acceptor = acceptor
        self._queue = queue
        self._limits = limits
        self._queue_limit = queue_limit

    # -- opened --------------------------------------------------------------------------------------------------------

    async def opened(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """Start the children, or answer why not. Those for which there is no room now are left for later."""
        parents = await self._record.read(
            lambda c: read_parents(c, list({r.run_id for r in rows}), self._limits.children_per_run + 1)
        )
        # Rows come again when what was done for them could not be settled: their children count already.
        there = await self._record.read(lambda c: find_children(c, [(r.namespace, _request_id(r)) for r in rows]))
        starts: list[_Start] = []
        later: list[AwaitRow] = []
        answers: list[NewMessage] = []
        more: dict[bytes, int] = {}
        for row in rows:
            facts = parents.get(row.run_id)
            if facts is None:
                continue  # the run is gone, and with it whoever could be answered
            if (row.namespace, _request_id(row)) in there:
                place = 0
            else:
                place = more[row.run_id] = more.get(row.run_id, 0) + 1
            try:
                starts.append(await self._start(row, facts, place))
            except _Refusal as refusal:
                answers.append(_answer(row, child_refused(refusal.problem)))
            except StoreUnavailable as error:
                log.info("child_start_waits", error=str(error))
                later.append(row)
        if len(self._queue) + self._acceptor.waiting_starts + len(starts) > self._queue_limit:
            later += [s.row for s in starts]
            starts = []
        if starts:
            try:
                accepted = await self._acceptor.accept([s.start for s in starts], "")
            except LaneClosed:
                later += [s.row for s in starts]
            else:
                for start, answer in zip(starts, accepted, strict=True):
                    answers += self._settle(start, answer)
        if answers:
            nudge_inboxes(self._bus, await self._record.read(lambda c: put_messages(c, answers)))
        return later

    async def _start(self, row: AwaitRow, facts: ParentFacts, place: int) -> _Start:
        """The start that an await asks for. Raises `_Refusal`, StoreUnavailable.

        `place`: which of the run's new children it is, from 1; 0 for one that has been started already.
        """
        request: dict[str, Any] = orjson.loads(row.request)
        namespace = request.get("namespace") or row.namespace
        workflow_id, version = str(request.get("workflow", "")), str(request.get("version") or "")
        if namespace != row.namespace:
            detail = f"a run of namespace {row.namespace!r} cannot start one of namespace {namespace!r}"
            raise _refused(row, ProblemType.AUTHORIZATION, 403, "Another namespace", detail)
        if "\0" in workflow_id or "\0" in version:
            detail = "the name or version of the workflow holds the character NUL"
            raise _refused(row, ProblemType.CONFIGURATION, 404, "Workflow not found", detail)
        if facts.depth >= self._limits.run_depth:
            detail = f"there are {facts.depth} runs above this one; limits.run_depth is {self._limits.run_depth}"
            raise _refused(row, ProblemType.LIMIT_EXCEEDED, 429, "Runs nested too deeply", detail)
        if place and facts.children + place > self._limits.children_per_run:
            detail = f"the run has started {facts.children} others (limits.children_per_run)"
            raise _refused(row, ProblemType.LIMIT_EXCEEDED, 429, "Too many runs started", detail)
        data = orjson.dumps(request.get("input"))
        if len(data) > self._limits.payload_bytes:
            detail = f"the input has {len(data)} bytes; the limit is {self._limits.payload_bytes}"
            raise _refused(row, ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", detail)
        try:
            start = await resolve_start(
                self._definitions,
                scheduling_pb2.Start(
                    namespace=namespace,
                    workflow_id=workflow_id,
                    version=version,
                    input=data,
                    request_id=_request_id(row),
                    level=facts.level,
                    trace_id=facts.trace_id,
                ),
            )
        except (NamespaceNotFound, WorkflowNotFound, VersionInvalid) as error:
            raise _refused(row, ProblemType.CONFIGURATION, 404, "Workflow not found", str(error)) from error
        except Refused as error:
            raise _refused(row, ProblemType.CONFIGURATION, 400, "Run refused", error.message) from error
        detached = bool(request.get("detached"))
        parent = Parent(row.run_id, row.key, not detached, facts.depth + 1, facts.root, self._limits.tree_runs)
        return _Start(row, detached, replace(start, parent=parent))

    def _settle(self, start: _Start, answer: Accepted) -> list[NewMessage]:
        if answer.tree_full:
            detail = f"there are {self._limits.tree_runs} runs in the tree of this one (limits.tree_runs)"
            problem = _problem(start.row, ProblemType.LIMIT_EXCEEDED, 429, "Too many runs in the tree", detail)
            return [_answer(start.row, child_refused(problem))]
        if not answer.same_request:
            detail = "another start has used the request id of this one"
            return [_answer(start.row, child_refused(_problem(start.row, ProblemType.RUNTIME, 500, "Refused", detail)))]
        # An await that is closed takes no message; the end of a child that is waited for is told by its fold.
        return [_answer(start.row, child_started(answer.run_id))] if start.detached else []

    # -- closed --------------------------------------------------------------------------------------------------------

    async def closed(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """Cancel the children that are waited for no longer. Detached ones go on."""
        names = [
            (row.namespace, _request_id(row)) for row in rows if not orjson.loads(row.request).get("detached", False)
        ]
        found = await self._record.read(lambda c: find_children(c, names)) if names else {}
        running: dict[str, list[bytes]] = {}
        for (namespace, _), child in found.items():
            if child.state not in _ENDED:
                running.setdefault(namespace, []).append(child.run_id)
        for namespace, run_ids in running.items():
            cancel = partial(
                put_inbox, namespace=namespace, run_ids=run_ids, kind="cancel", key="cancel", payload=_REASON
            )
            told = await self._record.read(cancel)
            nudge_inboxes(self._bus, [Target(r, group) for r, (group, state) in told.items() if state not in _ENDED])
        return ()


def _request_id(row: AwaitRow) -> str:
    return f"{_PREFIX}{run_id_text(row.run_id)}/{row.key}"


def _answer(row: AwaitRow, payload: bytes) -> NewMessage:
    return NewMessage(row.run_id, f"run/{row.key}", row.key, payload)


def _problem(row: AwaitRow, type_: str, status: int, title: str, detail: str) -> Problem:
    return Problem(type_, status, title, detail, row.step)


def _refused(row: AwaitRow, type_: str, status: int, title: str, detail: str) -> _Refusal:
    return _Refusal(_problem(row, type_, status, title, detail))
