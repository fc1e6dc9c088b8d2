"""Plans of the reading statements with 100,000 runs: by index, reading in proportion to the answer, not the table."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_core.ids import make_run_id
from flint_ops.config import PostgresSettings
from flint_store import history, identity, runs_read, workflows
from flint_store.definitions import RESOLVE_LATEST, RESOLVE_VERSION
from flint_store.engine import create_engine
from flint_store.migrate import upgrade
from support.postgres import Server
from support.record import CANCELLED, EPOCH_MS, FAILED, GROUPS, QUEUED, RUNNING, SUCCEEDED, WAITING

RUNS = 100_000
PAUSED = 7
RARE_EVERY = 1_000
BOUNDS = {
    "below": UUID(int=2**128 - 1),
    "lowest": UUID(int=0),
}


def state_of(number: int) -> int:
    if number % RARE_EVERY == 17:
        return FAILED
    if number % RARE_EVERY == 18:
        return CANCELLED
    if number >= RUNS - 60:
        return RUNNING
    if number % RARE_EVERY == 19:
        return WAITING
    if number == 5:
        return QUEUED
    return SUCCEEDED


@pytest.fixture(scope="module")
def full_dsn(server: Server) -> Iterator[str]:
    """Two namespaces, a common workflow and a rare one, 100,000 runs, statistics as after autovacuum."""
    dsn = server.create_database()
    upgrade(dsn, GROUPS)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO namespace (namespace_id) VALUES ('small')")
        connection.execute(
            "INSERT INTO workflow_version (namespace_id, workflow_id, version, version_sort, source, program,"
            " definition_hash) SELECT CASE n WHEN 3 THEN 'small' ELSE 'default' END, 'wf-' || n, '1.0.0', '~', '', '',"
            " sha256(n::text::bytea) FROM generate_series(1, 2000) n"
        )
        with connection.cursor().copy(
            "COPY run (run_id, namespace_id, definition_id, group_id, state, level, input, wake_at) FROM STDIN"
        ) as copy:
            for number in range(RUNS):
                state = state_of(number)
                run_id = make_run_id(number % 1024, EPOCH_MS + number, number.to_bytes(9, "big"))
                namespace, definition = ("small", 3) if number % 5_000 == 0 else ("default", 1)
                if number % 2_000 == 1:
                    definition = 2
                wake = "2026-01-01" if state == WAITING else None
                copy.write_row((UUID(bytes=run_id), namespace, definition, number % GROUPS, state, 5, b"{}", wake))
        first = UUID(bytes=make_run_id(0, EPOCH_MS, (0).to_bytes(9, "big")))
        connection.execute(
            "INSERT INTO run_entry (run_id, index, leg, claimant, steps, events)"
            " SELECT %s, n, 1, 'w', '', '' FROM generate_series(1, 20000) n",
            (first,),
        )
        connection.execute("ANALYZE")
    yield dsn


@pytest.fixture
async def full(full_dsn: str) -> AsyncIterator[AsyncEngine]:
    created = create_engine(PostgresSettings(dsn=SecretStr(full_dsn)), "reading")
    yield created
    await created.dispose()


@dataclass
class Plan:
    """What a statement did: rows that scans looked at, and how each table was reached."""

    root: dict[str, Any]

    def nodes(self) -> Iterator[dict[str, Any]]:
        stack = [self.root]
        while stack:
            node = stack.pop()
            yield node
            stack += node.get("Plans", [])

    def scanned(self) -> int:
        total = 0
        for node in self.nodes():
            if "Relation Name" in node:
                total += node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        return int(total)

    def sequential(self) -> set[str]:
        return {node["Relation Name"] for node in self.nodes() if node["Node Type"] == "Seq Scan"}

    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self.nodes() if "Index Name" in node}


async def explain(engine: AsyncEngine, statement: TextClause, parameters: dict[str, Any]) -> Plan:
    async with engine.connect() as connection:
        found = await connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}"), parameters)
        document = found.scalar_one()
    plans = json.loads(document) if isinstance(document, str) else document
    return Plan(plans[0]["Plan"])


ENDED_BADLY = frozenset({FAILED, CANCELLED})
UNFINISHED = frozenset({QUEUED, RUNNING, WAITING})

LISTS = [
    # (filter, namespace, indexes, rows that may be looked at for a page of 50)
    (runs_read.RunFilter(), "default", {"run_namespace"}, 250),
    (runs_read.RunFilter(), "small", {"run_namespace"}, 250),
    (runs_read.RunFilter(workflow_id="wf-1"), "default", {"run_definition"}, 250),
    (runs_read.RunFilter(workflow_id="wf-2"), "default", {"run_definition"}, 250),
    (runs_read.RunFilter(workflow_id="wf-3"), "small", {"run_definition"}, 250),
    (runs_read.RunFilter(workflow_id="wf-2", states=frozenset({SUCCEEDED})), "default", {"run_definition"}, 400),
    (runs_read.RunFilter(states=frozenset({FAILED})), "default", {"run_unsuccessful"}, 400),
    (runs_read.RunFilter(states=ENDED_BADLY), "default", {"run_unsuccessful"}, 400),
    (runs_read.RunFilter(states=ENDED_BADLY, workflow_id="wf-1"), "default", {"run_unsuccessful_definition"}, 400),
    # What is rare among many others is found without them: one queued run, no failed ones of a workflow.
    (
        runs_read.RunFilter(states=frozenset({FAILED}), workflow_id="wf-9"),
        "default",
        {"run_unsuccessful_definition"},
        10,
    ),
    (runs_read.RunFilter(states=frozenset({PAUSED})), "default", {"run_unfinished"}, 10),
    (runs_read.RunFilter(states=frozenset({FAILED})), "small", {"run_unsuccessful"}, 10),
    (runs_read.RunFilter(states=frozenset({FAILED, RUNNING})), "default", {"run_unsuccessful", "run_unfinished"}, 600),
    (runs_read.RunFilter(states=frozenset({SUCCEEDED})), "default", {"run_namespace"}, 400),
    (runs_read.RunFilter(states=UNFINISHED), "default", {"run_unfinished"}, 400),
    (runs_read.RunFilter(states=frozenset({QUEUED})), "default", {"run_unfinished"}, 10),
    (runs_read.RunFilter(states=frozenset({WAITING})), "default", {"run_unfinished"}, 400),
    (runs_read.RunFilter(states=UNFINISHED, workflow_id="wf-1"), "default", {"run_unfinished"}, 400),
]


@pytest.mark.parametrize(
    ("filters", "namespace", "indexes", "most"), LISTS, ids=[f"list-{n}" for n in range(len(LISTS))]
)
async def test_lists_read_a_page_not_the_table(
    full: AsyncEngine, filters: runs_read.RunFilter, namespace: str, indexes: set[str], most: int
) -> None:
    parameters = {"namespace": namespace, "limit": 50, **BOUNDS}
    if filters.workflow_id:
        parameters["workflow_id"] = filters.workflow_id
    statement = runs_read.list_statement(bool(filters.workflow_id), filters.states)
    plan = await explain(full, statement, parameters)
    assert not plan.sequential(), plan.root
    assert {name for name in plan.indexes() if name.startswith("run_")} == indexes
    assert plan.scanned() <= most, plan.root


@pytest.mark.parametrize("workflow_id", ["", "wf-1"])
async def test_deep_pages_cost_what_the_first_costs(full: AsyncEngine, workflow_id: str) -> None:
    middle = UUID(bytes=make_run_id(0, EPOCH_MS + RUNS // 2, bytes(9)))
    plan = await explain(
        full,
        runs_read.list_statement(bool(workflow_id), frozenset()),
        {"namespace": "default", "limit": 50, **BOUNDS, "below": middle}
        | ({"workflow_id": workflow_id} if workflow_id else {}),
    )
    assert plan.scanned() <= 250


async def test_reads_by_id_probe_the_primary_key(full: AsyncEngine) -> None:
    wanted = [make_run_id(n % 1024, EPOCH_MS + n, n.to_bytes(9, "big")) for n in range(0, RUNS, RUNS // 100)]
    plan = await explain(
        full,
        runs_read.READ_RUNS,
        {"run_ids": [UUID(bytes=run_id) for run_id in wanted], "with_input": True, "budget": 2**22},
    )
    assert "run" not in plan.sequential()
    assert "run_pkey" in plan.indexes()
    found = await runs_read.read_runs(full, wanted, budget_bytes=2**22)
    assert len(found.runs) == len(wanted)


@pytest.mark.parametrize(
    ("statement", "parameters", "most"),
    [
        (history.READ_ENTRIES, {"after": 10_000, "limit": 100, "budget": 2**20}, 100),
        (history.READ_STEPS, {"below": 10_000, "limit": 100}, 100),
    ],
    ids=["entries", "steps"],
)
async def test_history_reads_its_page(
    full: AsyncEngine, statement: TextClause, parameters: dict[str, Any], most: int
) -> None:
    run_id = UUID(bytes=make_run_id(0, EPOCH_MS, (0).to_bytes(9, "big")))
    plan = await explain(full, statement, {"run_id": run_id, **parameters})
    assert plan.indexes() == {"run_entry_pkey"}
    assert plan.scanned() <= most, plan.root


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        (RESOLVE_LATEST, {"namespace": "default", "workflow_id": "wf-7"}),
        (RESOLVE_VERSION, {"namespace": "default", "workflow_id": "wf-7", "version": "1.0.0"}),
        (workflows.READ_VERSION, {"namespace": "default", "workflow_id": "wf-7", "version": "1.0.0"}),
        (workflows.LIST_WORKFLOWS, {"namespace": "default", "after": "wf-1", "limit": 20}),
        (
            workflows.LIST_VERSIONS,
            {"namespace": "default", "workflow_id": "wf-7", "limit": 20} | {"after_sort": None, "after_version": ""},
        ),
    ],
    ids=["latest", "version", "read", "workflows", "versions"],
)
async def test_definitions_are_found_by_index(
    full: AsyncEngine, statement: TextClause, parameters: dict[str, Any]
) -> None:
    plan = await explain(full, statement, parameters)
    assert "workflow_version" not in plan.sequential(), plan.root
    assert plan.scanned() <= 60, plan.root


async def test_a_delete_probes_for_unfinished_runs(full: AsyncEngine) -> None:
    plan = await explain(
        full, workflows.DELETE_VERSION, {"namespace": "default", "workflow_id": "wf-9", "version": "1.0.0"}
    )
    assert "run" not in plan.sequential(), plan.root
    assert plan.scanned() <= 2 * (60 + 100 + 1), "reads more than what is unfinished"


async def test_a_key_is_found_by_its_id(full: AsyncEngine) -> None:
    async with full.connect() as connection:
        await connection.execute(
            text(
                "INSERT INTO api_key (key_id, namespace_id, secret_hash, role)"
                " SELECT 'key' || n, 'default', sha256(n::text::bytea), 1 FROM generate_series(1, 5000) n"
            )
        )
        await connection.execute(text("ANALYZE api_key"))
    plan = await explain(full, identity.AUTHENTICATE, {"key_id": "key77", "secret_hash": bytes(32)})
    assert plan.indexes() == {"api_key_pkey"}
    assert plan.scanned() <= 1
