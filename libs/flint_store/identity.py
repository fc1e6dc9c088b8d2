"""API keys. The record holds SHA-256 hashes of secrets, never secrets.

Secrets are random (not chosen by people), so one round of SHA-256 is enough; and what comparing hashes in SQL might
tell by its timing is of a hash, whose preimage an attacker would still have to find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_store.engine import fetch, write
from flint_store.errors import KeyIdTaken, KeyNotFound, LastAdminKey, NamespaceNotFound
from flint_store.timestamps import set_timestamp

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "ALL_NAMESPACES",
    "NewKey",
    "authenticate",
    "create_key",
    "ensure_local_admin_key",
    "list_keys",
    "revoke_key",
]

ALL_NAMESPACES = "-"

_COLUMNS = "namespace_id, key_id, display_name, role, created_at, expires_at, revoked_at"
_WORKS = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())"

# Primary key.
AUTHENTICATE = text(
    f"SELECT {_COLUMNS} FROM api_key WHERE key_id = :key_id AND secret_hash = :secret_hash AND {_WORKS}"
)

# Primary keys of namespace and api_key.
CREATE_KEY = text(f"""
INSERT INTO api_key (key_id, namespace_id, secret_hash, display_name, role, expires_at)
SELECT :key_id, :namespace, :secret_hash, :display_name, :role, CAST(:expires_at AS timestamptz)
WHERE :namespace = '{ALL_NAMESPACES}' OR EXISTS (SELECT FROM namespace WHERE namespace_id = :namespace)
ON CONFLICT (key_id) DO NOTHING
RETURNING {_COLUMNS}
""")

# Primary key.
READ_KEY = text(f"SELECT {_COLUMNS}, secret_hash FROM api_key WHERE key_id = :key_id")

# Backward range of api_key_namespace; the key to go on from by primary key.
LIST_KEYS = text(f"""
SELECT {_COLUMNS} FROM api_key
WHERE namespace_id = :namespace AND (:show_revoked OR {_WORKS})
  AND (:after_key_id = ''
       OR (created_at, key_id) < (SELECT created_at, key_id FROM api_key WHERE key_id = :after_key_id))
ORDER BY created_at DESC, key_id DESC
LIMIT :limit
""")

# Locks the cluster's working admin keys (found by api_key_namespace; in one order, so that two revocations do not
# deadlock): of two that would each leave the other's key, the second waits, sees the first, and is refused.
REVOKE_KEY = text(f"""
WITH admins AS MATERIALIZED (
    SELECT key_id FROM api_key
    WHERE namespace_id = '{ALL_NAMESPACES}' AND role = {int(identity_pb2.ROLE_ADMIN)} AND {_WORKS}
    ORDER BY key_id FOR UPDATE),
judged AS (
    SELECT count(*) FILTER (WHERE key_id <> :key_id) AS others, count(*) FILTER (WHERE key_id = :key_id) AS mine
    FROM admins)
UPDATE api_key SET revoked_at = clock_timestamp()
FROM judged
WHERE api_key.key_id = :key_id AND namespace_id = :namespace AND revoked_at IS NULL AND (mine = 0 OR others > 0)
RETURNING {_COLUMNS}
""")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to store. `namespace` "-" means all; `expires_at` is aware."""

    namespace: str
    key_id: str
    secret_hash: bytes
    display_name: str
    role: identity_pb2.Role.ValueType
    expires_at: datetime | None = None


async def authenticate(engine: AsyncEngine, key_id: str, secret_hash: bytes) -> identity_pb2.Key | None:
    """The working key with this id and secret; None when unknown, wrong, revoked or expired (by PostgreSQL's clock)."""
    rows = await fetch(engine, AUTHENTICATE, {"key_id": key_id, "secret_hash": secret_hash})
    return _message(rows[0]) if rows else None


async def create_key(engine: AsyncEngine, new: NewKey) -> identity_pb2.Key:
    """Store a key. Safe to repeat: the same key again answers the stored one.

    Raises `KeyIdTaken` when the id belongs to another key, `NamespaceNotFound`, `StoreUnavailable`.
    """
    rows = await write(
        engine,
        CREATE_KEY,
        {
            "key_id": new.key_id,
            "namespace": new.namespace,
            "secret_hash": new.secret_hash,
            "display_name": new.display_name,
            "role": int(new.role),
            "expires_at": new.expires_at,
        },
    )
    if rows:
        return _message(rows[0])
    stored = await fetch(engine, READ_KEY, {"key_id": new.key_id})
    if not stored:
        raise NamespaceNotFound(f"there is no namespace {new.namespace!r}")
    row = stored[0]
    if (bytes(row.secret_hash), row.namespace_id, row.role) != (new.secret_hash, new.namespace, new.role):
        raise KeyIdTaken(f"the key id {new.key_id} is taken")
    return _message(row[:-1])


async def list_keys(
    engine: AsyncEngine, namespace: str, *, after_key_id: str = "", show_revoked: bool = False, limit: int
) -> list[identity_pb2.Key]:
    """Keys of exactly this namespace ("-": those for all namespaces), newest first, behind `after_key_id`.

    Without `show_revoked` only those that work. Raises `StoreUnavailable`.
    """
    rows = await fetch(
        engine,
        LIST_KEYS,
        {"namespace": namespace, "after_key_id": after_key_id, "show_revoked": show_revoked, "limit": limit},
    )
    return [_message(row) for row in rows]


async def revoke_key(engine: AsyncEngine, namespace: str, key_id: str) -> identity_pb2.Key:
    """Revoke a key, for ever; answers it. Revoking again changes nothing.

    Raises `LastAdminKey` when no working key of the cluster's administrator would remain, also when two callers revoke
    each other's key at the same moment; `KeyNotFound`, `StoreUnavailable`.
    """
    rows = await write(engine, REVOKE_KEY, {"namespace": namespace, "key_id": key_id})
    if rows:
        return _message(rows[0])
    stored = await fetch(engine, READ_KEY, {"key_id": key_id})
    if not stored or stored[0].namespace_id != namespace:
        raise KeyNotFound(f"there is no key {key_id} in namespace {namespace!r}")
    if stored[0].revoked_at is None:
        raise LastAdminKey("it is the last working key of the cluster's administrator: create another one first")
    return _message(stored[0][:-1])


async def ensure_local_admin_key(engine: AsyncEngine, key_id: str, secret_hash: bytes) -> identity_pb2.Key:
    """Make sure that an administrator's key with this id and secret is stored: called by each start of one machine.

    A key that was revoked stays revoked: look at the answer's revoke_time, and make a key with another id then. Raises
    `KeyIdTaken` when the id has another secret.
    """
    new = NewKey(ALL_NAMESPACES, key_id, secret_hash, "local administrator", identity_pb2.ROLE_ADMIN)
    return await create_key(engine, new)


def _message(row: Sequence[Any]) -> identity_pb2.Key:
    namespace, key_id, display_name, role, created_at, expires_at, revoked_at = row
    key = identity_pb2.Key(name=f"namespaces/{namespace}/keys/{key_id}", display_name=display_name, role=role)
    set_timestamp(key.create_time, created_at)
    set_timestamp(key.expire_time, expires_at)
    set_timestamp(key.revoke_time, revoked_at)
    return key
