"""From a validated start to one that can be accepted: its definition, and what makes it the same request."""

from __future__ import annotations

import os
from hashlib import blake2b

from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2 as pb
from flint_scheduler.accept import NewStart
from flint_store.definitions import DefinitionCache

__all__ = ["DEFAULT_LEVEL", "resolve_start"]

DEFAULT_LEVEL = 5
"""Level of runs for which neither the start nor the definition names one."""


async def resolve_start(cache: DefinitionCache, start: pb.Start) -> NewStart:
    """The start with its definition. Raises StoreError: no such namespace or workflow, or PostgreSQL is away."""
    known = cache.cached(start.namespace, start.workflow_id, start.version)
    if known is None:
        known = await cache.resolve(start.namespace, start.workflow_id, start.version)
    # What makes two starts the same request: everything that was sent, the version as it was asked for.
    sent = start.level if start.HasField("level") else DEFAULT_LEVEL
    usual = DEFAULT_LEVEL if known.level is None else known.level
    digest = blake2b(start.input, digest_size=16)
    digest.update(f"\0{start.workflow_id}\0{start.version}\0{sent}".encode())
    return NewStart(
        namespace=start.namespace,
        workflow_id=start.workflow_id,
        version=known.version,
        definition_id=known.definition_id,
        definition_hash=known.definition_hash,
        level=min(max(start.level if start.HasField("level") else usual, 0), 9),
        request_id=start.request_id,
        request_hash=digest.digest(),
        trace_id=start.trace_id or os.urandom(16),
        input=start.input or b"{}",
    )
