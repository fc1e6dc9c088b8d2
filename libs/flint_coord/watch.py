"""Watching a prefix of keys, through broken connections, compactions and replaced stores.

States: **reading** (the present keys, all at one revision) → **opening** (a stream from the revision after the last
one seen; the store's identity is compared) → **following** (changes are yielded as they come) → on a broken stream
**opening** again: nothing is missed, nothing is yielded twice. When what came between cannot be known (etcd has
compacted it, the store's identity differs, or its revision went back) → **reading**, and the new SNAPSHOT says
`contiguous=False`: whoever follows compares it with what he has. A watch has no task and no buffer of its own: it
runs while its reader asks for the next change, and a slow reader is held back by gRPC's flow control.

A deleted etcd store may come back under the same cluster id and even with a higher revision, so each store carries a
random id of our own under the key `store`; see `Coord.store_identity`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog

from flint_coord.connection import STREAM_METADATA, Connection, read_stream, translate
from flint_coord.errors import CoordRefused, CoordUnavailable
from flint_coord.wire import kv, rpc

__all__ = ["Change", "ChangeKind", "Item", "StoreIdentity", "watch_prefix"]

_log = structlog.get_logger(room="flint_coord.watch")
_CREATED_TIMEOUT_S = 3.0
_PAUSE_S = 0.1
_MAX_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Item:
    """A key as it is. Revisions are etcd's: they grow within one store and are no fence across stores."""

    key: str
    value: bytes
    lease_id: int
    create_revision: int
    mod_revision: int


class ChangeKind(enum.Enum):
    """What a change is."""

    SNAPSHOT = "snapshot"
    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a watch tells.

    SNAPSHOT carries `items`, all keys at `revision`; PUT carries key, value, lease_id; DELETE carries the key.
    `contiguous` is False on a SNAPSHOT that follows a break in which changes may have been missed.
    """

    kind: ChangeKind
    key: str = ""
    value: bytes = b""
    lease_id: int = 0
    revision: int = 0
    create_revision: int = 0
    items: tuple[Item, ...] = ()
    contiguous: bool = True


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """Which etcd store answers, and the revision it has reached at least."""

    cluster_id: int
    marker: bytes
    revision: int

    def same_store(self, other: StoreIdentity) -> bool:
        """Whether both name one store."""
        return self.cluster_id == other.cluster_id and self.marker == other.marker


class _Broken(Exception):
    """What came since the last change seen cannot be known."""


async def watch_prefix(
    connection: Connection,
    root: str,
    prefix: str,
    read: Callable[[str], Awaitable[tuple[list[Item], int]]],
    identify: Callable[[], Awaitable[StoreIdentity]],
) -> AsyncGenerator[Change, None]:
    """Yields a SNAPSHOT, then every change below `root + prefix`, for ever. Raises only CoordRefused."""
    contiguous = True
    pause = _PAUSE_S
    while True:
        try:
            identity = await identify()
            items, revision = await read(prefix)
        except CoordUnavailable as error:
            _log.warning("watch_waits_for_etcd", prefix=prefix, error=str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)
            continue
        yield Change(ChangeKind.SNAPSHOT, items=tuple(items), revision=revision, contiguous=contiguous)
        contiguous = False
        pause = _PAUSE_S
        cursor = _Cursor(root, prefix, identity, revision + 1)
        while True:
            try:
                async with contextlib.aclosing(_follow(connection, cursor, identify)) as changes:
                    async for change in changes:
                        pause = _PAUSE_S
                        yield change
            except _Broken as broken:
                _log.warning("watch_broken", prefix=prefix, revision=cursor.next_revision, reason=str(broken))
                break
            except CoordUnavailable as error:
                _log.info("watch_resumes", prefix=prefix, revision=cursor.next_revision, reason=str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_S)


@dataclass(slots=True)
class _Cursor:
    """Where a watch is."""

    root: str
    prefix: str
    identity: StoreIdentity
    next_revision: int


async def _follow(
    connection: Connection, cursor: _Cursor, identify: Callable[[], Awaitable[StoreIdentity]]
) -> AsyncGenerator[Change, None]:
    """One stream's changes. Raises _Broken, CoordUnavailable, CoordRefused; never ends by itself otherwise."""
    key = (cursor.root + cursor.prefix).encode()
    call = connection.watch.Watch(metadata=STREAM_METADATA, wait_for_ready=True)
    try:
        try:
            async with asyncio.timeout(_CREATED_TIMEOUT_S):
                await call.write(
                    rpc.WatchRequest(
                        create_request=rpc.WatchCreateRequest(
                            key=key,
                            range_end=prefix_end(key),
                            start_revision=cursor.next_revision,
                            progress_notify=True,
                        )
                    )
                )
                first = await read_stream(call)
        except TimeoutError:
            raise CoordUnavailable("etcd did not open the watch in time") from None
        _inspect(first)
        identity = await identify()
        if not identity.same_store(cursor.identity):
            raise _Broken("this is another store")
        if identity.revision < cursor.next_revision - 1:
            raise _Broken(f"the store's revision went back to {identity.revision}")
        answer = first
        while True:
            for event in answer.events:
                yield _change(event, cursor.root)
            if answer.events:
                cursor.next_revision = answer.events[-1].kv.mod_revision + 1
            elif not answer.created:
                # A progress notice: nothing below the prefix has changed up to here, so a later compaction does no
                # harm.
                cursor.next_revision = max(cursor.next_revision, answer.header.revision + 1)
            answer = await read_stream(call)
            _inspect(answer)
    except grpc.aio.AioRpcError as error:
        raise translate(error) from error
    finally:
        call.cancel()


def _inspect(answer: Any) -> None:
    if answer is grpc.aio.EOF:
        raise CoordUnavailable("etcd ended the watch")
    if answer.canceled:
        if answer.compact_revision:
            raise _Broken(f"etcd has compacted up to revision {answer.compact_revision}")
        if "permission" in answer.cancel_reason:
            raise CoordRefused(f"etcd: {answer.cancel_reason}")
        raise CoordUnavailable(f"etcd ended the watch: {answer.cancel_reason}")


def _change(event: Any, root: str) -> Change:
    pair = event.kv
    key = pair.key.decode().removeprefix(root)
    if event.type == kv.Event.DELETE:
        return Change(ChangeKind.DELETE, key=key, revision=pair.mod_revision)
    return Change(
        ChangeKind.PUT,
        key=key,
        value=pair.value,
        lease_id=pair.lease,
        revision=pair.mod_revision,
        create_revision=pair.create_revision,
    )


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`."""
    end = bytearray(prefix)
    while end and end[-1] == 0xFF:
        end.pop()
    if not end:
        return b"\0"
    end[-1] += 1
    return bytes(end)
