"""Keys: who gets in, who no longer, and that an administrator is always left."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_store.errors import KeyIdTaken, KeyNotFound, LastAdminKey, NamespaceNotFound
from flint_store.identity import (
    NewKey,
    authenticate,
    create_key,
    ensure_local_admin_key,
    list_keys,
    revoke_key,
)


def key(key_id: str, namespace: str = "default", role: int = identity_pb2.ROLE_VIEWER, **more: object) -> NewKey:
    base = NewKey(
        namespace, key_id, sha256(key_id.encode()).digest(), f"for {key_id}", identity_pb2.Role.ValueType(role)
    )
    return replace(base, **more)  # type: ignore[arg-type]


def admin(key_id: str) -> NewKey:
    return key(key_id, "-", identity_pb2.ROLE_ADMIN)


def ids(keys: list[identity_pb2.Key]) -> list[str]:
    return [k.name.rsplit("/", 1)[1] for k in keys]


async def test_a_created_key_authenticates(engine: AsyncEngine) -> None:
    new = key("abcd", role=identity_pb2.ROLE_EDITOR)
    created = await create_key(engine, new)
    assert created.name == "namespaces/default/keys/abcd"
    assert (created.display_name, created.role) == ("for abcd", identity_pb2.ROLE_EDITOR)
    assert not created.HasField("expire_time") and not created.HasField("revoke_time")
    assert await authenticate(engine, "abcd", new.secret_hash) == created
    assert await authenticate(engine, "abcd", bytes(32)) is None
    assert await authenticate(engine, "abce", new.secret_hash) is None
    assert await authenticate(engine, "abcd", b"") is None


async def test_only_hashes_are_stored(engine: AsyncEngine) -> None:
    await create_key(engine, key("abcd"))
    async with engine.connect() as connection:
        row = (await connection.execute(text("SELECT api_key::text FROM api_key"))).scalar_one()
    assert sha256(b"abcd").hexdigest() in row


async def test_creating_again_answers_the_stored_key(engine: AsyncEngine) -> None:
    new = key("abcd")
    assert await create_key(engine, new) == await create_key(engine, new)
    with pytest.raises(KeyIdTaken):
        await create_key(engine, replace(new, secret_hash=bytes(32)))
    with pytest.raises(KeyIdTaken):
        await create_key(engine, replace(new, role=identity_pb2.ROLE_ADMIN))
    with pytest.raises(NamespaceNotFound):
        await create_key(engine, key("efgh", "nowhere"))


async def test_expired_keys_do_not_work(engine: AsyncEngine) -> None:
    past, future = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))
    old, new = key("old1", expires_at=past), key("new1", expires_at=future)
    await create_key(engine, old)
    created = await create_key(engine, new)
    assert created.expire_time.ToDatetime(tzinfo=UTC) == future
    assert await authenticate(engine, "old1", old.secret_hash) is None
    assert await authenticate(engine, "new1", new.secret_hash) is not None
    assert ids(await list_keys(engine, "default", limit=10)) == ["new1"]
    assert sorted(ids(await list_keys(engine, "default", show_revoked=True, limit=10))) == ["new1", "old1"]


async def test_revoked_keys_do_not_work_ever_again(engine: AsyncEngine) -> None:
    new = key("abcd")
    await create_key(engine, new)
    revoked = await revoke_key(engine, "default", "abcd")
    assert revoked.HasField("revoke_time")
    assert await revoke_key(engine, "default", "abcd") == revoked
    assert await authenticate(engine, "abcd", new.secret_hash) is None
    assert (await create_key(engine, new)).HasField("revoke_time")
    assert await list_keys(engine, "default", limit=10) == []


async def test_a_key_is_revoked_in_its_own_namespace_only(engine: AsyncEngine) -> None:
    await create_key(engine, key("abcd"))
    for namespace, key_id in (("-", "abcd"), ("other", "abcd"), ("default", "none")):
        with pytest.raises(KeyNotFound):
            await revoke_key(engine, namespace, key_id)


async def test_the_last_admin_key_stays(engine: AsyncEngine) -> None:
    await create_key(engine, admin("root"))
    await create_key(engine, key("nsadmin", "default", identity_pb2.ROLE_ADMIN))  # not the cluster's
    await create_key(engine, replace(admin("expired"), expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    with pytest.raises(LastAdminKey):
        await revoke_key(engine, "-", "root")
    assert await authenticate(engine, "root", admin("root").secret_hash) is not None
    await revoke_key(engine, "-", "expired")
    await revoke_key(engine, "default", "nsadmin")
    await create_key(engine, admin("second"))
    await revoke_key(engine, "-", "root")
    with pytest.raises(LastAdminKey):
        await revoke_key(engine, "-", "second")


async def test_a_revocation_waits_for_another_s_commit(engine: AsyncEngine, dsn: str) -> None:
    """Two administrators revoke each other's key at once: the second must see what the first commits."""
    for name in ("one1", "two2"):
        await create_key(engine, admin(name))
    with psycopg.connect(dsn) as other:
        other.execute("UPDATE api_key SET revoked_at = now() WHERE key_id = 'one1'")  # not committed yet
        revoking = asyncio.create_task(revoke_key(engine, "-", "two2"))
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
        # Each round is a round trip; the server sends no signal.
        while not revoking.done() and other.execute(waiting).fetchone() is None:
            await asyncio.sleep(0)
        other.commit()
    with pytest.raises(LastAdminKey):
        await revoking
    assert ids(await list_keys(engine, "-", limit=10)) == ["two2"]


async def test_administrators_revoking_each_other_leave_one(engine: AsyncEngine) -> None:
    names = [f"adm{n}" for n in range(8)]
    for name in names:
        await create_key(engine, admin(name))
    results = await asyncio.gather(*(revoke_key(engine, "-", name) for name in names), return_exceptions=True)
    assert len(await list_keys(engine, "-", limit=100)) == 1
    assert sum(isinstance(result, LastAdminKey) for result in results) == 1
    assert all(isinstance(result, identity_pb2.Key | LastAdminKey) for result in results), results


async def test_pages_of_keys(engine: AsyncEngine) -> None:
    names = [f"key{n}" for n in range(12)]
    for name in names:
        await create_key(engine, key(name))
    await create_key(engine, admin("root"))
    await revoke_key(engine, "default", "key5")
    await revoke_key(engine, "default", "key11")
    seen: list[str] = []
    while page := await list_keys(engine, "default", after_key_id=seen[-1] if seen else "", limit=4):
        seen += ids(page)
    assert seen == [name for name in reversed(names) if name not in ("key5", "key11")]
    assert ids(await list_keys(engine, "default", after_key_id="key5", limit=2)) == ["key4", "key3"]
    assert ids(await list_keys(engine, "-", limit=10)) == ["root"]


async def test_the_local_admin_key(engine: AsyncEngine) -> None:
    secret = sha256(b"secret").digest()
    first, second = await asyncio.gather(*(ensure_local_admin_key(engine, "local", secret) for _ in range(2)))
    assert first == second
    assert (first.name, first.role) == ("namespaces/-/keys/local", identity_pb2.ROLE_ADMIN)
    assert await authenticate(engine, "local", secret) == first
    with pytest.raises(KeyIdTaken):
        await ensure_local_admin_key(engine, "local", bytes(32))
    await create_key(engine, admin("second"))
    await revoke_key(engine, "-", "local")
    assert (await ensure_local_admin_key(engine, "local", secret)).HasField("revoke_time")
