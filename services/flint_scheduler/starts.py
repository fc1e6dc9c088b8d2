"""From a validated start to one that can be accepted: its definition, how it queues, what makes it the same request."""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import blake2b
from time import time

import grpc

from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2 as pb
from flint_core.queue_hints import NOTHING, HintInvalid, StartHints, resolve_hints
from flint_rpc.errors import ErrorReason, Refused
from flint_scheduler.accept import NewStart
from flint_store.definitions import DefinitionCache, ResolvedDefinition

__all__ = ["DEFAULT_LEVEL", "LevelNamed", "level_named", "resolve_start", "start_of"]

DEFAULT_LEVEL = 5
"""Level of runs for which neither the start nor the definition names one."""

LevelNamed = Callable[[str, str], int | None]
"""The level to which a namespace gave a name."""


def level_named(levels: LevelNamed, namespace: str, name: str) -> int:
    """The level of this name. Raises Refused (LEVEL_UNKNOWN)."""
    level = levels(namespace, name)
    if level is None:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            ErrorReason.ERROR_REASON_LEVEL_UNKNOWN,
            f"the namespace {namespace} has no level {name!r}; `flint levels set {name} <0 to 9>` names one",
        )
    return level


async def resolve_start(
    cache: DefinitionCache, start: pb.Start, levels: LevelNamed = lambda namespace, name: None
) -> NewStart:
    """The start with its definition.

    Raises StoreError (no such namespace or workflow, or PostgreSQL is away) and Refused (a level that has no such name,
    a key that cannot be told from the input).
    """
    known = cache.cached(start.namespace, start.workflow_id, start.version)
    if known is None:
        known = await cache.resolve(start.namespace, start.workflow_id, start.version)
    return start_of(known, start, levels)


def start_of(known: ResolvedDefinition, start: pb.Start, levels: LevelNamed) -> NewStart:
    """The start of a workflow whose definition is known. Raises Refused like `resolve_start`."""
    queue = known.queue
    if start.HasField("level"):
        level = start.level
    elif start.level_name:
        level = level_named(levels, start.namespace, start.level_name)
    elif known.level is not None:
        level = known.level
    elif queue is not None and "level" in queue:
        level = level_named(levels, start.namespace, queue["level"])
    else:
        level = DEFAULT_LEVEL
    said = _said(start)
    hints = None
    if queue is not None or said is not NOTHING:
        try:
            hints = resolve_hints(queue, said, start.workflow_id, start.input, int(time() * 1000))
        except HintInvalid as error:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_QUEUE_HINT_INVALID, str(error)
            ) from error
    # What makes two starts the same request: everything that was sent, the version as it was asked for.
    sent = start.level if start.HasField("level") else start.level_name or DEFAULT_LEVEL
    data = start.input
    digest = blake2b(data, digest_size=16)
    digest.update(f"\0{start.workflow_id}\0{start.version}\0{sent}".encode())
    if said is not NOTHING:
        digest.update(f"\0{said}".encode())
    return NewStart(
        namespace=start.namespace,
        workflow_id=start.workflow_id,
        version=known.version,
        definition_id=known.definition_id,
        definition_hash=known.definition_hash,
        level=min(max(level, 0), 9),
        request_id=start.request_id,
        request_hash=digest.digest(),
        trace_id=start.trace_id or os.urandom(16),
        input=data or b"{}",
        hints=hints,
    )


def _said(start: pb.Start) -> StartHints:
    if not (start.pool or start.region or start.deadline_ms or start.not_before_ms or start.fairness_key):
        return NOTHING
    return StartHints(start.pool, start.region, start.deadline_ms, start.not_before_ms, start.fairness_key)
