"""Which definition a start means, answered from memory: `DefinitionCache`.

Accepting a start must not cost a query for its workflow, and yet a version that was applied through any replica must be
what the next start uses. Three layers, from cheap to exact:

1. An answer is used while its namespace was seen at most `ttl_s` ago (1 s). After that one query of one row
   (`namespace.definition_epoch`) confirms all answers of the namespace at once; only when the epoch has moved are they
   read again. So the cost is one or two small queries a second for each namespace that is in use, none for an idle one.
   `cached` asks when half of that time has passed, and answers meanwhile: so a start waits for such a query only when
   its namespace was not in use for a second.
2. `invalidate(namespace)`: called on this replica when it applied or deleted a version, and on others when they hear of
   it (a broadcast); the next start confirms first.
3. `ResolvedDefinition.epoch`: the namespace's epoch under which the answer was true. A commit that compares it with
   `namespace.definition_epoch` (a row it reads anyway) is exact without waiting for anything: when they differ, call
   `invalidate` and resolve again.

When PostgreSQL cannot be reached nothing is answered from stale memory: `StoreUnavailable`; starts could not be
committed either. The cache belongs to one event loop. It has no task that lasts: one that asks early ends with its
query, and when it fails, the next `resolve` asks again and tells why.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import text

from flint_ops.clock import boottime
from flint_ops.logging import get_logger
from flint_store.engine import fetch
from flint_store.errors import NamespaceNotFound, StoreError, WorkflowNotFound

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["DefinitionCache", "ResolvedDefinition", "queue_of", "retention_of"]

_log = get_logger(__name__)

# Primary key of namespace.
READ_EPOCH = text("SELECT definition_epoch FROM namespace WHERE namespace_id = :namespace")

# The epoch and the answer in one snapshot. Primary key of namespace; workflow_version_name or, for the latest, the
# first entry of workflow_version_latest.
RESOLVE_VERSION = text("""
SELECT n.definition_epoch, d.definition_id, d.version, d.definition_hash, d.level, d.queue
FROM namespace n
LEFT JOIN workflow_version d ON d.namespace_id = n.namespace_id AND d.workflow_id = :workflow_id
    AND d.version = :version AND d.deleted_at IS NULL
WHERE n.namespace_id = :namespace
""")
RESOLVE_LATEST = text("""
SELECT n.definition_epoch, d.definition_id, d.version, d.definition_hash, d.level, d.queue
FROM namespace n
LEFT JOIN LATERAL (
    SELECT definition_id, version, definition_hash, level, queue FROM workflow_version
    WHERE namespace_id = n.namespace_id AND workflow_id = :workflow_id AND deleted_at IS NULL
    ORDER BY version_sort DESC, version DESC LIMIT 1) d ON true
WHERE n.namespace_id = :namespace
""")


@dataclass(frozen=True, slots=True)
class ResolvedDefinition:
    """What a start runs. `epoch`: the namespace's definition epoch under which this was the answer; `level`: of runs
    whose start names none, if the definition says it; `queue`: what it says of how its runs queue.
    """

    definition_id: int
    version: str
    definition_hash: bytes
    epoch: int
    level: int | None = None
    queue: dict[str, Any] | None = None


@dataclass(slots=True)
class _Namespace:
    """What is remembered of a namespace. `generation` grows with each invalidation: reads begun before are void."""

    epoch: int = -1
    checked_at: float = float("-inf")
    generation: int = 0
    answers: OrderedDict[tuple[str, str], ResolvedDefinition | None] = field(default_factory=OrderedDict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    early: asyncio.Task[None] | None = None


class DefinitionCache:
    """Resolves (namespace, workflow, version or latest). Bounded; also remembers that there is no such workflow.

    `ttl_s`: how long a version applied through another replica may go unnoticed when nobody tells (see the module).
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        ttl_s: float = 1.0,
        namespaces: int = 1_000,
        entries_per_namespace: int = 10_000,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._engine = engine
        self._ttl_s = ttl_s
        self._limit = namespaces
        self._entries = entries_per_namespace
        self._clock = clock
        self._namespaces: OrderedDict[str, _Namespace] = OrderedDict()

    def cached(self, namespace: str, workflow_id: str, version: str = "") -> ResolvedDefinition | None:
        """The answer if it is in memory and fresh, without waiting; None means: call `resolve`."""
        known = self._namespaces.get(namespace)
        if known is None:
            return None
        age_s = self._clock() - known.checked_at
        if age_s > self._ttl_s:
            return None
        if age_s > self._ttl_s / 2 and known.early is None:
            known.early = asyncio.create_task(self._confirm_early(namespace, known), name="definitions")
        return known.answers.get((workflow_id, version))

    async def resolve(self, namespace: str, workflow_id: str, version: str = "") -> ResolvedDefinition:
        """What a start of this workflow runs now; the latest version when `version` is empty.

        Concurrent callers of one namespace share one query. Raises `NamespaceNotFound`, `WorkflowNotFound`,
        `StoreUnavailable`.
        """
        known = self._remember(namespace)
        key = (workflow_id, version)
        if not self._fresh(known) or key not in known.answers:
            async with known.lock:
                if not self._fresh(known):
                    await self._confirm(namespace, known)
                if key not in known.answers:
                    return _found(await self._read(namespace, known, key), key)
        known.answers.move_to_end(key)
        return _found(known.answers[key], key)

    def invalidate(self, namespace: str, workflow_id: str = "") -> None:
        """Definitions of the namespace may have changed: confirm before the next answer. Cheap; call it on every hint.

        A `workflow_id` drops that workflow's answers at once, for a caller that knows that it changed.
        """
        known = self._namespaces.get(namespace)
        if known is None:
            return
        known.generation += 1
        known.checked_at = float("-inf")
        for key in [key for key in known.answers if key[0] == workflow_id]:
            del known.answers[key]

    async def close(self) -> None:
        """Ends the queries that were made early."""
        tasks = [known.early for known in self._namespaces.values() if known.early is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _confirm_early(self, namespace: str, known: _Namespace) -> None:
        try:
            async with known.lock:
                if self._namespaces.get(namespace) is known and self._fresh(known):
                    await self._confirm(namespace, known)
        except StoreError as error:
            _log.debug("definitions_not_confirmed_early", namespace=namespace, error=str(error))
        finally:
            known.early = None

    def _remember(self, namespace: str) -> _Namespace:
        known = self._namespaces.get(namespace)
        if known is None:
            known = self._namespaces[namespace] = _Namespace()
            while len(self._namespaces) > self._limit:
                self._namespaces.popitem(last=False)
        else:
            self._namespaces.move_to_end(namespace)
        return known

    def _fresh(self, known: _Namespace) -> bool:
        return self._clock() - known.checked_at <= self._ttl_s

    async def _confirm(self, namespace: str, known: _Namespace) -> None:
        """Compare epochs; forget the answers of an older one."""
        began, generation = self._clock(), known.generation
        rows = await fetch(self._engine, READ_EPOCH, {"namespace": namespace})
        if not rows:
            self._namespaces.pop(namespace, None)
            raise NamespaceNotFound(f"there is no namespace {namespace!r}")
        self._seen(known, int(rows[0][0]), began, generation)

    async def _read(self, namespace: str, known: _Namespace, key: tuple[str, str]) -> ResolvedDefinition | None:
        """Read one answer; remember it unless something was invalidated meanwhile."""
        workflow_id, version = key
        began, generation = self._clock(), known.generation
        parameters = {"namespace": namespace, "workflow_id": workflow_id}
        if version:
            rows = await fetch(self._engine, RESOLVE_VERSION, parameters | {"version": version})
        else:
            rows = await fetch(self._engine, RESOLVE_LATEST, parameters)
        if not rows:
            self._namespaces.pop(namespace, None)
            raise NamespaceNotFound(f"there is no namespace {namespace!r}")
        epoch, definition_id, found_version, definition_hash, level, queue = rows[0]
        said = orjson.loads(bytes(queue)) if queue is not None else None
        answer = (
            ResolvedDefinition(definition_id, found_version, bytes(definition_hash), epoch, level, said)
            if definition_id is not None
            else None
        )
        self._seen(known, epoch, began, generation)
        if generation == known.generation and epoch == known.epoch:
            known.answers[key] = answer
            while len(known.answers) > self._entries:
                known.answers.popitem(last=False)
        return answer

    def _seen(self, known: _Namespace, epoch: int, began: float, generation: int) -> None:
        """The namespace had this epoch at some moment after `began`."""
        if epoch != known.epoch:  # lower: the record was restored to an earlier state
            known.answers.clear()
            known.epoch = epoch
        if generation == known.generation:
            known.checked_at = max(known.checked_at, began)


def queue_of(program: bytes) -> bytes | None:
    """What an encoded program says of how its runs queue, JSON; None where it says nothing."""
    queue = _member(program, "queue")
    return orjson.dumps(queue) if isinstance(queue, dict) else None


def retention_of(program: bytes) -> int | None:
    """How long an encoded program's ended runs are kept, seconds; 0: for ever, None where it says nothing."""
    retention_s = _member(program, "retention_s")
    return retention_s if isinstance(retention_s, int) else None


def _member(program: bytes, name: str) -> Any:
    try:
        document = orjson.loads(program)
    except orjson.JSONDecodeError:
        return None
    return document.get(name) if isinstance(document, dict) else None


def _found(answer: ResolvedDefinition | None, key: tuple[str, str]) -> ResolvedDefinition:
    if answer is None:
        workflow_id, version = key
        raise WorkflowNotFound(
            f"there is no version {version} of workflow {workflow_id}"
            if version
            else f"there is no workflow {workflow_id}"
        )
    return answer
