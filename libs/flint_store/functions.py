"""The registry of custom functions: one row per version that ever connected, with the schemas that it declared last.

A version that connects again with other schemas replaces them: its worker is what executes the calls, so its word
counts. Rows are never removed; there are at most 10,000 in a namespace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from flint_contracts.gen.flint.functions.v1 import functions_pb2
from flint_store.arrays import byteas, texts
from flint_store.engine import fetch, write
from flint_store.errors import FunctionsFull, NamespaceNotFound
from flint_store.timestamps import set_timestamp
from flint_store.version_order import version_sort

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["CONNECTED_S", "list_functions", "put_functions", "touch_functions"]

CONNECTED_S: Final = 20
"""A function that was seen within this time counts as connected: gateways touch theirs every 5 s."""

_MOST: Final = 10_000

# Primary keys of namespace and function. A new row is stored only while there is room; a known one always.
PUT = text(f"""
WITH given AS (
    SELECT * FROM unnest(CAST(:names AS text[]), CAST(:versions AS text[]), CAST(:sorts AS text[]),
                         CAST(:descriptions AS text[]), CAST(:inputs AS bytea[]), CAST(:outputs AS bytea[]))
        AS t (name, version, version_sort, description, input_schema, output_schema)),
room AS (
    SELECT {_MOST} - (SELECT count(*) FROM function WHERE namespace_id = :namespace) AS free)
INSERT INTO function AS f (namespace_id, name, version, version_sort, description, input_schema, output_schema)
SELECT n.namespace_id, g.name, g.version, g.version_sort, g.description, g.input_schema, g.output_schema
FROM namespace n, given g, room
WHERE n.namespace_id = :namespace
  AND (room.free >= :count OR EXISTS (SELECT FROM function k WHERE k.namespace_id = :namespace AND k.name = g.name
                                      AND k.version = g.version))
ON CONFLICT (namespace_id, name, version) DO UPDATE
SET description = excluded.description, input_schema = excluded.input_schema, output_schema = excluded.output_schema,
    seen_at = now()
RETURNING f.name
""")

# Primary key of namespace.
NAMESPACE_EXISTS = text("SELECT 1 FROM namespace WHERE namespace_id = :namespace")

# Primary key, one probe for each.
TOUCH = text("""
UPDATE function SET seen_at = now()
FROM unnest(CAST(:namespaces AS text[]), CAST(:names AS text[]), CAST(:versions AS text[])) AS t (ns, name, version)
WHERE function.namespace_id = t.ns AND function.name = t.name AND function.version = t.version
RETURNING 1
""")

# A range of function_order; the row to go on from by primary key.
LIST = text(f"""
SELECT name, version, description,
       CASE WHEN :with_schemas THEN input_schema ELSE CAST('' AS bytea) END,
       CASE WHEN :with_schemas THEN output_schema ELSE CAST('' AS bytea) END,
       created_at, seen_at, seen_at > now() - interval '{CONNECTED_S} seconds'
FROM function
WHERE namespace_id = :namespace AND (:all OR name = ANY(CAST(:names AS text[])))
  AND (:version = '' OR version = :version)
  AND (:after_name = '' OR name > :after_name
       OR (name = :after_name AND (version_sort, version) < (:after_sort, :after_version)))
ORDER BY name, version_sort DESC, version DESC
LIMIT :limit
""")


async def put_functions(
    engine: AsyncEngine, namespace: str, functions: Sequence[functions_pb2.FunctionDeclaration]
) -> None:
    """Store functions, each name and version once. Safe to repeat.

    Raises `NamespaceNotFound`, `FunctionsFull`, `VersionInvalid`, `StoreUnavailable`.
    """
    # In one order: two gateways that store the same functions at the same time do not deadlock.
    ordered = sorted(functions, key=lambda function: (function.name, function.version))
    rows = await write(
        engine,
        PUT,
        {
            "namespace": namespace,
            "count": len(ordered),
            "names": texts(f.name for f in ordered),
            "versions": texts(f.version for f in ordered),
            "sorts": texts(version_sort(f.version) for f in ordered),
            "descriptions": texts(f.description for f in ordered),
            "inputs": byteas(f.input_schema for f in ordered),
            "outputs": byteas(f.output_schema for f in ordered),
        },
    )
    if len(rows) == len(ordered):
        return
    if not await fetch(engine, NAMESPACE_EXISTS, {"namespace": namespace}):
        raise NamespaceNotFound(f"there is no namespace {namespace!r}")
    raise FunctionsFull(f"namespace {namespace!r} has {_MOST} versions of functions, which is the limit")


async def touch_functions(engine: AsyncEngine, functions: Iterable[tuple[str, str, str]]) -> int:
    """Note that these (namespace, name, version) are connected now; how many of them are known.

    Raises `StoreUnavailable`; safe to repeat.
    """
    ordered = sorted(functions)
    parameters = {
        "namespaces": texts(namespace for namespace, _, _ in ordered),
        "names": texts(name for _, name, _ in ordered),
        "versions": texts(version for _, _, version in ordered),
    }
    return len(await write(engine, TOUCH, parameters))


async def list_functions(
    engine: AsyncEngine,
    namespace: str,
    *,
    names: Sequence[str] = (),
    version: str = "",
    after: tuple[str, str] = ("", ""),
    with_schemas: bool = True,
    limit: int,
) -> list[functions_pb2.Function]:
    """Versions of all functions, or of those named, or only one version; by name, the highest first, behind `after`.

    Raises `VersionInvalid` for a malformed `after`, `StoreUnavailable`.
    """
    rows = await fetch(
        engine,
        LIST,
        {
            "namespace": namespace,
            "all": not names,
            "names": texts(names),
            "version": version,
            "after_name": after[0],
            "after_version": after[1],
            "after_sort": version_sort(after[1]) if after[0] else "",
            "with_schemas": with_schemas,
            "limit": limit,
        },
    )
    return [_message(row) for row in rows]


def _message(row: Sequence[Any]) -> functions_pb2.Function:
    name, version, description, input_schema, output_schema, created_at, seen_at, connected = row
    function = functions_pb2.Function(
        name=name,
        version=version,
        description=description,
        input_schema=bytes(input_schema),
        output_schema=bytes(output_schema),
        connected=connected,
    )
    set_timestamp(function.create_time, created_at)
    set_timestamp(function.seen_time, seen_at)
    return function
