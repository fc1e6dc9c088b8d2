"""`Coord`: everything a process asks of etcd.

etcd is permission (who may try) and discovery; fences are PostgreSQL's. So nothing here is ever the only proof of
anything: a replaced etcd store costs seconds, never a run. Keys are relative to `/<cluster>/`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from flint_coord import keys
from flint_coord.connection import REQUEST_TIMEOUT_S, Connection
from flint_coord.errors import CoordRefused, CoordUnavailable
from flint_coord.lease import Lease
from flint_coord.renewals import Renewals
from flint_coord.watch import Change, Item, StoreIdentity, prefix_end, watch_prefix
from flint_coord.wire import rpc
from flint_ops.clock import boottime
from flint_ops.config import EtcdSettings

__all__ = ["Coord"]

_PAGE = 1000
_MIN_TTL_S = 2


class Coord:
    """One process's relation to etcd. Safe for any number of tasks of one event loop.

    Every method has a deadline (`timeout_s`, retries included) and raises CoordUnavailable when it passes; a change
    may then have happened or not. CoordRefused means a defect or missing rights.
    """

    def __init__(self, connection: Connection, cluster: str) -> None:
        self._connection = connection
        self._root = f"/{cluster}/"
        self._renewals = Renewals(connection)

    @classmethod
    async def connect(cls, settings: EtcdSettings, *, cluster: str) -> Coord:
        """Opens the connection. Does not wait for etcd: requests do, each up to its deadline."""
        return cls(await Connection.open(settings.endpoints), cluster)

    @property
    def connected(self) -> bool:
        """Whether etcd is connected and answered the last request; asks nobody."""
        return self._connection.connected

    async def ping(self, *, timeout_s: float = 2.0) -> int:
        """Asks for a linearisable read, so for a quorum: the store's revision."""
        return (await self._range(b"\0", b"", limit=1, timeout_s=timeout_s)).header.revision  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Ends renewals and the connection. Leases are left to end by themselves; revoke them before."""
        await self._renewals.close()
        await self._connection.close()

    # -- leases

    async def grant(self, ttl_s: int, *, timeout_s: float = REQUEST_TIMEOUT_S) -> Lease:
        """A new lease of `ttl_s` seconds (at least 2). Nobody renews it until `keep` is called."""
        if ttl_s < _MIN_TTL_S:
            raise CoordRefused(f"a lease of {ttl_s} s is shorter than etcd keeps apart: at least {_MIN_TTL_S}")
        sent = boottime()
        lease_id = secrets.randbits(62) + 1
        request = rpc.LeaseGrantRequest(TTL=ttl_s, ID=lease_id)
        try:
            await self._connection.unary(self._connection.lease.LeaseGrant, request, timeout_s=timeout_s, repeat=True)
        except CoordRefused as error:
            # The id is ours alone: a lease that exists already was granted by an attempt whose answer was lost.
            if "already exists" not in str(error):
                raise
        return Lease(self._connection, self._renewals, lease_id, ttl_s, sent + ttl_s)

    async def renew(self, lease_id: int, *, timeout_s: float = 2.0) -> int:
        """Renews anybody's lease: the seconds it holds from now on, 0 when it has ended.

        Its holder counts from before *he* asked.
        """
        return await self._renewals.renew(lease_id, timeout_s=timeout_s)

    async def renew_many(self, lease_ids: Iterable[int], *, timeout_s: float = 2.0) -> list[int]:
        """Renews many leases as one batch: seconds in the same order, 0 for those that have ended."""
        return await self._renewals.renew_many(lease_ids, timeout_s=timeout_s)

    async def revoke(self, lease_id: int, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Ends anybody's lease with its keys. One that has ended already is no error."""
        await Lease(self._connection, self._renewals, lease_id, 0, 0.0).revoke(timeout_s=timeout_s)

    # -- keys

    async def put(
        self, key: str, value: bytes | str, lease_id: int = 0, *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> int:
        """Writes a key: the revision. Raises LeaseEnded when the lease does not exist."""
        request = rpc.PutRequest(key=self._key(key), value=_bytes(value), lease=lease_id)
        answer = await self._connection.unary(self._connection.kv.Put, request, timeout_s=timeout_s, repeat=True)
        return answer.header.revision  # type: ignore[no-any-return]

    async def create(
        self, key: str, value: bytes | str, lease_id: int, *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> bool:
        """Writes a key that does not exist: True when it is held by this value under this lease, False when by
        another.

        An attempt whose answer was lost is resolved by the next one, which reads value and lease back. When even that
        is not answered (CoordUnavailable) the key may have been created: let the lease end, or ask again.
        Raises LeaseEnded.
        """
        name, content = self._key(key), _bytes(value)
        request = rpc.TxnRequest(
            compare=[rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.CREATE, key=name, create_revision=0)],
            success=[
                rpc.RequestOp(request_put=rpc.PutRequest(key=name, value=content, lease=lease_id)),
            ],
            failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=name))],
        )
        answer = await self._connection.unary(self._connection.kv.Txn, request, timeout_s=timeout_s, repeat=True)
        if answer.succeeded:
            return True
        held = answer.responses[0].response_range.kvs
        return bool(held) and lease_id != 0 and held[0].lease == lease_id and held[0].value == content

    async def get(self, key: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> Item | None:
        """A key, linearisable, or None."""
        answer = await self._range(self._key(key), b"", limit=1, timeout_s=timeout_s)
        return self._item(answer.kvs[0]) if answer.kvs else None

    async def scan(self, prefix: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> list[Item]:
        """All keys that begin with `prefix`, as of one moment, sorted."""
        return (await self._read(prefix, timeout_s))[0]

    async def delete(self, key: str, only_lease: int | None = None, *, timeout_s: float = REQUEST_TIMEOUT_S) -> bool:
        """Deletes a key, with `only_lease` only while it is held under that lease: whether this call's last attempt
        did.

        False also when an earlier attempt, whose answer was lost, had deleted it.
        """
        name = self._key(key)
        compare = []
        if only_lease is not None:
            compare.append(rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.LEASE, key=name, lease=only_lease))
        request = rpc.TxnRequest(
            compare=compare,
            success=[rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=name))],
        )
        answer = await self._connection.unary(self._connection.kv.Txn, request, timeout_s=timeout_s, repeat=True)
        return bool(answer.succeeded and answer.responses[0].response_delete_range.deleted)

    # -- watching

    def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        """Follows all keys that begin with `prefix`: a SNAPSHOT, then PUT and DELETE, for ever.

        A broken connection is resumed without loss. After a break in which changes may have been missed (compaction,
        another store, revision gone back) comes another SNAPSHOT with `contiguous=False`. Close it (`aclose`) or
        cancel its reader to stop it.
        """
        return watch_prefix(self._connection, self._root, prefix, self._read_prefix, self.store_identity)

    async def store_identity(self, *, timeout_s: float = REQUEST_TIMEOUT_S) -> StoreIdentity:
        """Which store this is: its cluster id and the random id under the key `store`, which is written if missing."""
        name = self._key(keys.STORE)
        get = rpc.RequestOp(request_range=rpc.RangeRequest(key=name))
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=name, value=secrets.token_hex(16).encode()))
        request = rpc.TxnRequest(
            compare=[rpc.Compare(result=rpc.Compare.GREATER, target=rpc.Compare.CREATE, key=name, create_revision=0)],
            success=[get],
            failure=[put, get],
        )
        answer = await self._connection.unary(self._connection.kv.Txn, request, timeout_s=timeout_s, repeat=True)
        kvs = answer.responses[-1].response_range.kvs
        if not kvs:
            raise CoordRefused("etcd answered a transaction without the key that it reads")
        return StoreIdentity(answer.header.cluster_id, kvs[0].value, answer.header.revision)

    # -- private

    async def _read_prefix(self, prefix: str) -> tuple[list[Item], int]:
        return await self._read(prefix, REQUEST_TIMEOUT_S)

    async def _read(self, prefix: str, timeout_s: float) -> tuple[list[Item], int]:
        start = self._key(prefix)
        end = prefix_end(start)
        items: list[Item] = []
        revision = 0
        while True:
            answer = await self._range(start, end, limit=_PAGE, revision=revision, timeout_s=timeout_s)
            revision = revision or answer.header.revision
            items.extend(self._item(kv) for kv in answer.kvs)
            if not answer.more:
                return items, revision
            start = answer.kvs[-1].key + b"\0"

    async def _range(self, key: bytes, end: bytes, *, limit: int, timeout_s: float, revision: int = 0) -> Any:
        request = rpc.RangeRequest(key=key, range_end=end, limit=limit, revision=revision)
        try:
            return await self._connection.unary(self._connection.kv.Range, request, timeout_s=timeout_s, repeat=True)
        except CoordRefused as error:
            if revision and ("compacted" in str(error) or "future revision" in str(error)):
                raise CoordUnavailable("the store changed between two pages of one read") from error
            raise

    def _item(self, kv: Any) -> Item:
        key = kv.key.decode().removeprefix(self._root)
        return Item(key, kv.value, kv.lease, kv.create_revision, kv.mod_revision)

    def _key(self, key: str) -> bytes:
        return (self._root + key).encode()


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value
