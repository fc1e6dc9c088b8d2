"""Reading runs: by id within a budget, and in lists that page by id with filters."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.ids import parse_run_id
from flint_store.runs_read import RunFilter, list_runs, read_runs
from flint_store.workflows import delete_version
from support.record import (
    CANCELLED,
    EPOCH_MS,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    add_namespace,
    add_runs,
    add_version,
    moment,
    run_id_at,
)

BUDGET = 2**20


def id_of(run: runs_pb2.Run) -> bytes:
    parsed = parse_run_id(run.name.rsplit("/", 1)[1])
    assert parsed is not None
    return parsed


async def test_a_run_is_mapped_whole(engine: AsyncEngine) -> None:
    definition = await add_version(engine, "orders", "1.2.0")
    error = runs_pb2.Problem(type="about:blank", status=500, title="broken", instance="/do/0/x")
    [run_id] = await add_runs(
        engine,
        [
            {
                "definition_id": definition,
                "state": FAILED,
                "level": 0,
                "request_id": "client-1",
                "trace_id": bytes(range(16)),
                "input": b'{"a":1}',
                "output": b"[2]",
                "error": error.SerializeToString(),
                "change": 7,
                "position": 5,
                "leg": 2,
                "claimant": "f" * 32,
                "started_at": moment(EPOCH_MS + 1),
                "ended_at": moment(EPOCH_MS + 2),
                "wake_at": moment(EPOCH_MS + 3),
            }
        ],
    )
    found = await read_runs(engine, [run_id, run_id_at(EPOCH_MS)], budget_bytes=BUDGET)
    expected = runs_pb2.Run(
        name=found.runs[0].name,
        workflow="namespaces/default/workflows/orders/versions/1.2.0",
        state=runs_pb2.Run.STATE_FAILED,
        level=0,
        input=b'{"a":1}',
        output=b"[2]",
        error=error,
        leg=2,
        position=5,
        change=7,
        request_id="client-1",
        trace_id=bytes(range(16)).hex(),
        worker="f" * 32,
        pool="default",
    )
    for name, at in (("create_time", 0), ("start_time", 1), ("end_time", 2), ("wake_time", 3)):
        getattr(expected, name).FromMilliseconds(EPOCH_MS + at)
    assert found.runs == [expected]
    assert found.left_out == []
    assert id_of(found.runs[0]) == run_id
    without = await read_runs(engine, [run_id], with_input=False, budget_bytes=BUDGET)
    assert (without.runs[0].input, without.runs[0].output) == (b"", b"[2]")


async def test_the_gateway_s_own_request_ids_are_not_shown(engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    [run_id] = await add_runs(engine, [{"definition_id": definition, "request_id": "~0198"}])
    assert (await read_runs(engine, [run_id], budget_bytes=BUDGET)).runs[0].request_id == ""


async def test_what_does_not_fit_is_left_out_and_can_be_asked_for(engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    payload = random.Random(1).randbytes(100_000)
    wanted = await add_runs(
        engine, [{"definition_id": definition, "input": payload, "output": payload} for _ in range(12)]
    )
    asked, got, rounds = list(wanted), [], 0
    while asked:
        found = await read_runs(engine, asked, budget_bytes=500_000)
        assert found.runs, "no progress"
        assert sum(run.ByteSize() for run in found.runs) <= 500_000
        assert all(run.input == payload and run.output == payload for run in found.runs)
        assert not {id_of(run) for run in found.runs} & set(found.left_out)
        got += [id_of(run) for run in found.runs]
        asked, rounds = found.left_out, rounds + 1
    assert sorted(got) == sorted(wanted)
    assert rounds == 6
    tiny = await read_runs(engine, wanted[:2], budget_bytes=10)
    assert len(tiny.runs) == 1 and len(tiny.left_out) == 1
    assert not (await read_runs(engine, wanted, with_input=False, budget_bytes=BUDGET * 2)).left_out


FILTERS = [
    RunFilter(),
    RunFilter(workflow_id="orders"),
    RunFilter(workflow_id="missing"),
    RunFilter(states=frozenset({FAILED})),
    RunFilter(states=frozenset({QUEUED, RUNNING, WAITING})),
    RunFilter(states=frozenset({FAILED, CANCELLED, RUNNING})),
    RunFilter(states=frozenset({SUCCEEDED}), workflow_id="bills"),
    RunFilter(states=frozenset({WAITING}), workflow_id="orders"),
    RunFilter(created_after=moment(EPOCH_MS + 40), created_before=moment(EPOCH_MS + 90)),
    RunFilter(created_after=moment(EPOCH_MS + 95), workflow_id="orders", states=frozenset({FAILED, SUCCEEDED})),
    RunFilter(created_after=moment(EPOCH_MS + 50), created_before=moment(EPOCH_MS + 50)),
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("page_size", [1, 7, 500])
async def test_pages_hold_what_the_filter_says_in_order(
    engine: AsyncEngine, filters: RunFilter, page_size: int
) -> None:
    rng = random.Random(7)
    await add_namespace(engine, "other")
    names = {
        await add_version(engine, "orders", "1.0.0"): "orders",
        await add_version(engine, "orders", "1.1.0"): "orders",
        await add_version(engine, "bills", "1.0.0"): "bills",
        await add_version(engine, "orders", "1.0.0", namespace="other"): "other",
    }
    rows = []
    for _ in range(150):
        definition = rng.choice(list(names))
        rows.append(
            {
                "definition_id": definition,
                "namespace_id": "other" if names[definition] == "other" else "default",
                "state": rng.randint(QUEUED, CANCELLED),
                "at_ms": EPOCH_MS + rng.randrange(100),  # several in one millisecond
            }
        )
    run_ids = await add_runs(engine, rows)
    expected = sorted(
        (
            run_id
            for run_id, row in zip(run_ids, rows, strict=True)
            if row["namespace_id"] == "default"
            and (not filters.workflow_id or names[row["definition_id"]] == filters.workflow_id)
            and (not filters.states or row["state"] in filters.states)
            and (filters.created_after is None or moment(row["at_ms"]) >= filters.created_after)
            and (filters.created_before is None or moment(row["at_ms"]) < filters.created_before)
        ),
        reverse=True,
    )
    found: list[bytes] = []
    while page := await list_runs(engine, "default", filters, before_id=found[-1] if found else b"", limit=page_size):
        assert len(page) <= page_size
        found += [id_of(run) for run in page]
    assert found == expected


async def test_moments_between_milliseconds_round_up(engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    runs = await add_runs(engine, [{"definition_id": definition, "at_ms": EPOCH_MS + n} for n in range(3)])
    between = moment(EPOCH_MS + 1) + timedelta(microseconds=1)
    later = await list_runs(engine, "default", RunFilter(created_after=between), limit=10)
    earlier = await list_runs(engine, "default", RunFilter(created_before=between), limit=10)
    assert [id_of(run) for run in later] == [runs[2]]
    assert [id_of(run) for run in earlier] == [runs[1], runs[0]]


async def test_pages_stay_right_while_runs_are_added(engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    before = await add_runs(engine, [{"definition_id": definition, "at_ms": EPOCH_MS + n} for n in range(20)])
    first = await list_runs(engine, "default", RunFilter(), limit=10)
    await add_runs(engine, [{"definition_id": definition, "at_ms": EPOCH_MS + 100 + n} for n in range(5)])
    second = await list_runs(engine, "default", RunFilter(), before_id=id_of(first[-1]), limit=10)
    assert [id_of(run) for run in [*first, *second]] == before[::-1]


async def test_lists_carry_no_payloads_and_only_small_errors(engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    small = runs_pb2.Problem(type="t", title="small").SerializeToString()
    large = runs_pb2.Problem(type="t", title="large", detail="x" * 5000).SerializeToString()
    await add_runs(
        engine,
        [
            {"definition_id": definition, "state": FAILED, "error": small, "input": b"1", "output": b"2"},
            {"definition_id": definition, "state": FAILED, "error": large},
            {"definition_id": definition, "state": SUCCEEDED},
        ],
    )
    good, over, fits = await list_runs(engine, "default", RunFilter(), limit=10)
    assert (fits.error.title, fits.input, fits.output) == ("small", b"", b"")
    assert "too large for a list" in over.error.title
    assert not good.HasField("error")


async def test_runs_of_deleted_versions_stay_listed(engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    await add_runs(engine, [{"definition_id": definition, "state": SUCCEEDED}])
    await delete_version(engine, "default", "orders", "1.0.0")
    for filters in (RunFilter(), RunFilter(workflow_id="orders")):
        [run] = await list_runs(engine, "default", filters, limit=10)
        assert run.workflow == "namespaces/default/workflows/orders/versions/1.0.0"
