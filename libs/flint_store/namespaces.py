"""Settings of namespaces: weight, quotas, names of levels. One small row per namespace that ever changed them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.namespaces.v1 import namespaces_pb2
from flint_store.engine import fetch, transaction
from flint_store.errors import NamespaceNotFound
from flint_store.timestamps import set_timestamp

__all__ = ["change_settings", "default_settings", "read_all_settings", "read_settings"]

_MOST: Final = 100_000

# Primary key of namespace and of namespace_settings.
READ = text("""
SELECT n.namespace_id, s.settings, s.updated_at FROM namespace n
LEFT JOIN namespace_settings s ON s.namespace_id = n.namespace_id WHERE n.namespace_id = :namespace
""")

READ_ALL = text("SELECT namespace_id, settings, updated_at FROM namespace_settings LIMIT :most")

LOCK = text("""
SELECT n.namespace_id, s.settings FROM namespace n
LEFT JOIN namespace_settings s ON s.namespace_id = n.namespace_id WHERE n.namespace_id = :namespace FOR UPDATE OF n
""")

PUT = text("""
INSERT INTO namespace_settings (namespace_id, settings) VALUES (:namespace, :settings)
ON CONFLICT (namespace_id) DO UPDATE
SET settings = excluded.settings, change = namespace_settings.change + 1, updated_at = clock_timestamp()
RETURNING updated_at
""")


def default_settings(namespace: str) -> namespaces_pb2.NamespaceSettings:
    """Those of a namespace that never changed them."""
    return namespaces_pb2.NamespaceSettings(name=f"namespaces/{namespace}/settings")


async def read_settings(engine: AsyncEngine, namespace: str) -> namespaces_pb2.NamespaceSettings:
    """The settings of one namespace. Raises NamespaceNotFound, StoreUnavailable."""
    rows = await fetch(engine, READ, {"namespace": namespace})
    if not rows:
        raise NamespaceNotFound(f"there is no namespace {namespace!r}")
    return _settings(namespace, rows[0].settings, rows[0].updated_at)


async def read_all_settings(engine: AsyncEngine) -> dict[str, namespaces_pb2.NamespaceSettings]:
    """The settings of all namespaces that have any. Raises StoreUnavailable."""
    rows = await fetch(engine, READ_ALL, {"most": _MOST})
    return {row.namespace_id: _settings(row.namespace_id, row.settings, row.updated_at) for row in rows}


async def change_settings(
    engine: AsyncEngine, namespace: str, change: Callable[[namespaces_pb2.NamespaceSettings], None]
) -> namespaces_pb2.NamespaceSettings:
    """Change the settings in one commit; what `change` raises passes, and nothing is changed then.

    Raises NamespaceNotFound, StoreUnavailable.
    """
    async with transaction(engine) as connection:
        row = (await connection.execute(LOCK, {"namespace": namespace})).first()
        if row is None:
            raise NamespaceNotFound(f"there is no namespace {namespace!r}")
        settings = _settings(namespace, row.settings, None)
        change(settings)
        stored = settings.SerializeToString(deterministic=True)
        at = (await connection.execute(PUT, {"namespace": namespace, "settings": stored})).scalar_one()
    return _settings(namespace, stored, at)


def _settings(namespace: str, stored: bytes | None, updated_at: datetime | None) -> namespaces_pb2.NamespaceSettings:
    settings = default_settings(namespace)
    if stored is not None:
        settings.MergeFromString(bytes(stored))
    set_timestamp(settings.update_time, updated_at)
    return settings
