"""The bounded cache of keys, in front of the schedulers' PrincipalService.

An entry is honoured `ttl_s` from before it was asked for: so long may a revoked key still be honoured, no longer. One
that is in use is asked for again when half of that has passed, while calls go on: so they wait only for keys that were
not used for a while.
Refused credentials are remembered for a second, in a table of their own, so that guesses neither reach the schedulers
at full rate nor push good keys out. Callers that ask for the same unknown key at the same time share one call.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from flint_ops import metrics
from flint_rpc import api_keys
from flint_rpc.errors import ErrorReason, Refused
from flint_rpc.names import parse_key
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.scheduling_pb2_grpc import PrincipalServiceAsyncStub

__all__ = ["KeyCache", "Principal"]

_TIMEOUT_S = 4.0
_REFUSED_TTL_S = 1.0
_REFUSED_ENTRIES = 10_000
_ASKING_LIMIT = 256

_LOOKUPS = metrics.counter("gateway_key_lookups", "Keys that were not in the cache, by outcome", ("outcome",))


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: a key that worked when it was looked up. `namespace` is `-` for all."""

    key_id: str
    namespace: str
    role: identity_pb2.Role.ValueType
    key: identity_pb2.Key


@dataclass(frozen=True, slots=True)
class _Entry:
    """Honoured until then, and asked for again from `early` on."""

    until: float
    early: float
    principal: Principal


class KeyCache:
    """See the module. Used from one event loop; `close` ends what is being asked."""

    def __init__(self, client: Client[PrincipalServiceAsyncStub], *, ttl_s: float, entries: int) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._entries = entries
        self._good: OrderedDict[bytes, _Entry] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[float, Refused]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Principal]] = {}

    def known(self, authorization: str) -> Principal | None:
        """The principal when its entry is still good, else None. Does not wait."""
        digest = _digest(authorization)
        entry = self._good.get(digest)
        if entry is None:
            return None
        now = time.monotonic()
        if now >= entry.until:
            return None
        if now >= entry.early and digest not in self._asking and len(self._asking) < _ASKING_LIMIT:
            key = api_keys.parse(authorization[7:])
            if key is not None:
                self._look_up(digest, key)
        return entry.principal

    async def find(self, authorization: str) -> Principal:
        """The principal behind an `authorization` value. Raises `Refused`: UNAUTHENTICATED, or UNAVAILABLE."""
        digest = _digest(authorization)
        refused = self._refused.get(digest)
        if refused is not None and time.monotonic() < refused[0]:
            raise refused[1]
        task = self._asking.get(digest)
        if task is None:
            key = api_keys.parse(authorization[7:]) if authorization[:7].lower() == "bearer " else None
            if key is None:
                raise _invalid("the credentials have not the form «Bearer flint_<key>_<secret>»")
            if len(self._asking) >= _ASKING_LIMIT:
                raise Refused(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    ErrorReason.ERROR_REASON_QUEUE_FULL,
                    "too many unknown keys are being looked up",
                    retry_after_s=1.0,
                )
            task = self._look_up(digest, key)
        # Shielded: a caller that goes away must not fail the others that wait for the same key.
        return await asyncio.shield(task)

    def _look_up(self, digest: bytes, key: api_keys.ApiKey) -> asyncio.Task[Principal]:
        task = asyncio.create_task(self._ask(digest, key), name="key-lookup")
        self._asking[digest] = task
        task.add_done_callback(lambda done: self._asked(digest, done))
        return task

    async def close(self) -> None:
        """Ends lookups under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, digest: bytes, key: api_keys.ApiKey) -> Principal:
        asked = time.monotonic()
        request = scheduling_pb2.AuthenticateRequest(key_id=key.key_id, secret_hash=key.secret_hash)
        try:
            response = await self._client.call(lambda stub: stub.Authenticate, request, _TIMEOUT_S)
        except Refused as error:
            if error.code is not grpc.StatusCode.UNAUTHENTICATED:
                _LOOKUPS.labels("failed").inc()
                raise
            _LOOKUPS.labels("refused").inc()
            refused = _invalid("the API key is not known, expired or revoked")
            _make_room(self._refused, _REFUSED_ENTRIES)
            self._refused[digest] = (asked + _REFUSED_TTL_S, refused)
            self._good.pop(digest, None)
            raise refused from None
        _LOOKUPS.labels("found").inc()
        namespace, key_id = parse_key(response.key.name)
        principal = Principal(key_id, namespace, response.key.role, response.key)
        ttl_s = self._ttl_s
        early = asked + ttl_s / 2
        if response.key.HasField("expire_time"):
            left_s = response.key.expire_time.ToMilliseconds() / 1000 - time.time()
            if left_s < ttl_s:
                ttl_s, early = left_s, math.inf  # there is nothing more to hear of it
        self._good.pop(digest, None)
        _make_room(self._good, self._entries)
        self._good[digest] = _Entry(asked + ttl_s, early, principal)
        return principal

    def _asked(self, digest: bytes, task: asyncio.Task[Principal]) -> None:
        self._asking.pop(digest, None)
        if not task.cancelled():
            task.exception()  # read, so that asyncio does not report one that every caller has left


def _digest(authorization: str) -> bytes:
    # Hashed: the cache must not hold secrets that a memory dump would show.
    return hashlib.sha256(authorization.encode()).digest()


def _make_room(entries: OrderedDict[bytes, _Entry] | OrderedDict[bytes, tuple[float, Refused]], limit: int) -> None:
    while len(entries) >= limit:
        entries.popitem(last=False)


def _invalid(message: str) -> Refused:
    return Refused(grpc.StatusCode.UNAUTHENTICATED, ErrorReason.ERROR_REASON_CREDENTIALS_INVALID, message)
