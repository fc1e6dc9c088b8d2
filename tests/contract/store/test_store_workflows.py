"""Workflow versions: idempotent, immutable, ordered, deleted only when unused."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_store.errors import NamespaceNotFound, VersionExists, VersionInvalid, WorkflowInUse, WorkflowNotFound
from flint_store.version_order import version_sort
from flint_store.workflows import (
    delete_version,
    list_versions,
    list_workflows,
    program_by_hash,
    put_version,
    read_version,
)
from support.record import (
    CANCELLED,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    add_namespace,
    add_runs,
    add_version,
    new_version,
)


async def epoch(engine: AsyncEngine, namespace: str = "default") -> int:
    async with engine.connect() as connection:
        found = await connection.execute(
            text("SELECT definition_epoch FROM namespace WHERE namespace_id = :n"), {"n": namespace}
        )
        return int(found.scalar_one())


async def test_put_stores_and_answers_everything(engine: AsyncEngine) -> None:
    new = new_version("orders", "1.2.0")
    stored, created = await put_version(engine, new)
    assert created
    assert stored.name == "namespaces/default/workflows/orders/versions/1.2.0"
    assert (stored.title, stored.source, stored.latest) == (new.title, new.source, True)
    assert stored.definition_hash == new.definition_hash.hex()
    assert stored.create_time.seconds > 0
    assert await read_version(engine, "default", "orders", "1.2.0") == stored
    assert await program_by_hash(engine, new.definition_hash) == new.program


async def test_the_same_content_again_answers_the_stored_one(engine: AsyncEngine) -> None:
    first, _ = await put_version(engine, new_version())
    before = await epoch(engine)
    again, created = await put_version(engine, replace(new_version(), source="other layout, same program"))
    assert (created, again) == (False, first)
    assert await epoch(engine) == before, "nothing changed, so caches stay"


async def test_other_content_is_refused(engine: AsyncEngine) -> None:
    stored, _ = await put_version(engine, new_version())
    with pytest.raises(VersionExists, match=r"1\.0\.0"):
        await put_version(engine, new_version(body="changed"))
    assert await read_version(engine, "default", "orders", "1.0.0") == stored


async def test_of_many_at_once_one_wins(engine: AsyncEngine) -> None:
    same = await asyncio.gather(*(put_version(engine, new_version("same")) for _ in range(8)))
    assert sorted(created for _, created in same) == [False] * 7 + [True]
    different = await asyncio.gather(
        *(put_version(engine, new_version("contested", body=str(number))) for number in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, VersionExists) for result in different) == 7
    assert await epoch(engine) == 2


async def test_an_unknown_namespace_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(NamespaceNotFound):
        await put_version(engine, new_version(namespace="nowhere"))


async def test_a_wrong_version_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(VersionInvalid):
        await put_version(engine, new_version(version="1.0"))


async def test_the_latest_is_the_highest_not_the_last(engine: AsyncEngine) -> None:
    ordered = ["1.0.0-alpha.2", "1.0.0-alpha.10", "1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.1", "2.0.0"]
    for version in [*ordered[1::2], *ordered[0::2]]:
        await put_version(engine, new_version("orders", version))
        latest = await read_version(engine, "default", "orders")
        present = [v.version for v in await list_versions(engine, "default", "orders", limit=100)]
        assert latest is not None and latest.latest
        assert latest.version == max(present, key=version_sort)
    listed = await list_versions(engine, "default", "orders", limit=100)
    assert [v.version for v in listed] == ordered[::-1]
    assert [v.version for v in listed if v.latest] == ["2.0.0"]
    assert not any(v.source for v in listed)


async def test_versions_that_differ_in_build_alone_have_one_latest(engine: AsyncEngine) -> None:
    for version in ("1.0.0+b", "1.0.0+a", "1.0.0"):
        await put_version(engine, new_version("orders", version))
    listed = await list_versions(engine, "default", "orders", limit=100)
    assert [v.version for v in listed if v.latest] == [listed[0].version]


async def test_pages_of_versions(engine: AsyncEngine) -> None:
    versions = [f"1.{minor}.0{tail}" for minor in range(12) for tail in ("", "-rc.1", "+build")]
    for version in versions:
        await put_version(engine, new_version("orders", version))
    pages, after = [], ""
    while page := await list_versions(engine, "default", "orders", after=after, limit=5):
        pages += [v.version for v in page]
        after = pages[-1]
    assert sorted(pages) == sorted(versions)
    assert [version_sort(v) for v in pages] == sorted((version_sort(v) for v in versions), reverse=True)


async def test_pages_of_workflows_hold_latest_versions(engine: AsyncEngine) -> None:
    names = [f"wf-{letter}" for letter in "dbeac"]
    for name in names:
        for version in ("1.0.0", "1.1.0", "1.1.0-rc.1"):
            await put_version(engine, new_version(name, version))
    await delete_version(engine, "default", "wf-c", "1.1.0")
    await add_namespace(engine, "other")
    await put_version(engine, new_version("wf-other", namespace="other"))
    seen, after = [], ""
    while page := await list_workflows(engine, "default", after=after, limit=2):
        seen += [(v.workflow_id, v.version) for v in page]
        assert all(v.latest for v in page)
        after = page[-1].workflow_id
    assert seen == [(name, "1.1.0-rc.1" if name == "wf-c" else "1.1.0") for name in sorted(names)]


@pytest.mark.parametrize("state", [QUEUED, RUNNING, WAITING])
async def test_delete_is_refused_while_a_run_is_unfinished(engine: AsyncEngine, state: int) -> None:
    definition = await add_version(engine)
    other = await add_version(engine, version="2.0.0")
    await add_runs(
        engine, [{"definition_id": definition, "state": state}, {"definition_id": other, "state": SUCCEEDED}]
    )
    before = await epoch(engine)
    with pytest.raises(WorkflowInUse):
        await delete_version(engine, "default", "orders", "1.0.0")
    assert await epoch(engine) == before
    assert await read_version(engine, "default", "orders", "1.0.0") is not None
    await delete_version(engine, "default", "orders", "2.0.0")


async def test_delete_hides_and_frees_the_version(engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    await add_runs(engine, [{"definition_id": definition, "state": s} for s in (SUCCEEDED, FAILED, CANCELLED)])
    await delete_version(engine, "default", "orders", "1.0.0")
    assert await epoch(engine) == 2
    assert await read_version(engine, "default", "orders", "1.0.0") is None
    assert await read_version(engine, "default", "orders") is None
    assert await list_workflows(engine, "default", limit=10) == []
    with pytest.raises(WorkflowNotFound):
        await delete_version(engine, "default", "orders", "1.0.0")
    assert await program_by_hash(engine, new_version().definition_hash) == new_version().program
    again, created = await put_version(engine, new_version(body="other content now"))
    assert created and again.latest


async def test_of_many_deletes_at_once_one_succeeds(engine: AsyncEngine) -> None:
    await add_version(engine)
    results = await asyncio.gather(
        *(delete_version(engine, "default", "orders", "1.0.0") for _ in range(8)), return_exceptions=True
    )
    assert results.count(None) == 1
    assert sum(isinstance(result, WorkflowNotFound) for result in results) == 7
    assert await epoch(engine) == 2
