from __future__ import annotations

from typing import Any

import grpc
import pytest

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT

GOOD = """\
document:
  dsl: 1.0.3
  namespace: default
  name: {name}
  version: 1.0.0
do:
  - total:
      set:
        sum: ${{ [.a, .b] | add }}
"""


def apply(house: Any, source: str, **fields: Any) -> Any:
    request = workflows_pb2.ApplyWorkflowRequest(parent="namespaces/default", source=source, **fields)
    return house.admin.call(house.admin.workflows.ApplyWorkflow, request)


async def test_a_definition_is_checked_and_stored(house: Any) -> None:
    source = GOOD.format(name="flow")
    dry = await apply(house, source, validate_only=True)
    assert (dry.workflow.workflow_id, dry.workflow.version, dry.created) == ("flow", "1.0.0", False)
    assert not house.record.workflows
    first = await apply(house, source)
    assert first.created
    assert first.workflow.definition_hash == dry.workflow.definition_hash
    assert not (await apply(house, source)).created
    get = workflows_pb2.GetWorkflowRequest(name="namespaces/default/workflows/flow")
    assert (await house.admin.call(house.admin.workflows.GetWorkflow, get)).workflow.source == source
    delete = workflows_pb2.DeleteWorkflowRequest(name=first.workflow.name)
    await house.admin.call(house.admin.workflows.DeleteWorkflow, delete)


async def test_a_missing_workflow(house: Any, refused: Any) -> None:
    get = workflows_pb2.GetWorkflowRequest(name="namespaces/default/workflows/none")
    with refused(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND"):
        await house.admin.call(house.admin.workflows.GetWorkflow, get)


@pytest.mark.parametrize(
    ("source", "reason", "field", "text"),
    [
        ("do: [", "DEFINITION_INVALID", "source:", ""),
        (GOOD.format(name="flow").replace("set:", "sett:"), "DEFINITION_INVALID", "source:8:", "/do/0/total"),
        (
            GOOD.format(name="flow").replace("| add", "| no_such_function"),
            "DEFINITION_INVALID",
            "source:9:17",
            "no_such_function",
        ),
        (
            GOOD.format(name="flow").replace("namespace: default", "namespace: other"),
            "DEFINITION_INVALID",
            "source:3:3",
            "/document/namespace",
        ),
        (
            GOOD.format(name="flow").replace(
                "set:\n        sum: ${ [.a, .b] | add }", "wait: PT1S\n      metadata: {flint: {residency: eu}}"
            ),
            "DEFINITION_UNSUPPORTED",
            "source:9:",
            "/do/0/total",
        ),
    ],
)
async def test_a_refused_definition_names_line_column_and_pointer(
    house: Any, refused: Any, source: str, reason: str, field: str, text: str
) -> None:
    with refused(INVALID, reason) as caught:
        await apply(house, source)
    violations = caught["error"].field_violations
    assert any(entry.field.startswith(field) and text in entry.description for entry in violations), violations
    assert not house.record.workflows


async def test_sources_have_bounds(house: Any, refused: Any) -> None:
    with refused(INVALID, "FIELD_INVALID"):
        await apply(house, "  ")
    with refused(INVALID, "PAYLOAD_TOO_LARGE"):
        await apply(house, "#" * (2**20 + 1))


async def test_workflows_are_listed_in_pages(house: Any, refused: Any) -> None:
    for name in ("a", "b", "c"):
        await apply(house, GOOD.format(name=name))
    ids, token = [], ""
    for _ in range(2):
        request = workflows_pb2.ListWorkflowsRequest(parent="namespaces/default", page_size=2, page_token=token)
        page = await house.admin.call(house.admin.workflows.ListWorkflows, request)
        ids += [workflow.workflow_id for workflow in page.workflows]
        token = token or page.next_page_token
    assert ids == ["a", "b", "c"]
    with refused(INVALID, "PAGE_TOKEN_INVALID"):
        request = workflows_pb2.ListWorkflowsRequest(parent="namespaces/other", page_token=token)
        await house.admin.call(house.admin.workflows.ListWorkflows, request)


async def test_runs_are_listed_in_pages_of_one_namespace(house: Any, refused: Any) -> None:
    names = [house.record.add().name for _ in range(5)]
    house.record.add("other")
    listed, token = [], ""
    while True:
        request = runs_pb2.ListRunsRequest(parent="namespaces/default", page_size=2, page_token=token)
        page = await house.admin.call(house.admin.runs.ListRuns, request)
        listed += [run.name for run in page.runs]
        token = page.next_page_token
        if not token:
            break
    assert sorted(listed) == sorted(names)
    for wrong in ({"page_size": -1}, {"states": [0]}, {"workflow_id": "No"}):
        with refused(INVALID, "FIELD_INVALID"):
            request = runs_pb2.ListRunsRequest(parent="namespaces/default", **wrong)  # type: ignore[arg-type]
            await house.admin.call(house.admin.runs.ListRuns, request)


async def test_history_is_paged_and_kept_in_its_namespace(house: Any, refused: Any) -> None:
    run = house.record.add()
    indexes, token = [], ""
    while True:
        request = runs_pb2.GetRunHistoryRequest(name=run.name, page_size=2, page_token=token)
        page = await house.admin.call(house.admin.runs.GetRunHistory, request)
        indexes += [entry.index for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert indexes == [1, 2, 3, 4, 5]
    with refused(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND"):
        request = runs_pb2.GetRunHistoryRequest(name=run.name.replace("default", "other"))
        await house.admin.call(house.admin.runs.GetRunHistory, request)


async def test_a_cancels_reason_has_at_most_512_characters(house: Any, refused: Any) -> None:
    run = await house.admin.start()
    cancel = house.admin.runs.CancelRun
    await house.admin.call(cancel, runs_pb2.CancelRunRequest(name=run.name, reason="é" * 512))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID") as caught:
        await house.admin.call(cancel, runs_pb2.CancelRunRequest(name=run.name, reason="é" * 513))
    assert [violation.field for violation in caught["error"].field_violations] == ["reason"]


async def test_cancels(house: Any, refused: Any) -> None:
    run = house.record.add()
    answer = await house.admin.call(house.admin.runs.CancelRun, runs_pb2.CancelRunRequest(name=run.name, reason="why"))
    assert answer.run.name == run.name
    house.record.change(run, runs_pb2.Run.STATE_SUCCEEDED)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "RUN_ENDED"):
        await house.admin.call(house.admin.runs.CancelRun, runs_pb2.CancelRunRequest(name=run.name))
    with refused(INVALID, "FIELD_INVALID"):
        await house.admin.call(house.admin.runs.CancelRun, runs_pb2.CancelRunRequest(name=run.name, reason="x" * 513))
    with refused(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND"):
        other = runs_pb2.CancelRunRequest(name=run.name.replace("default", "other"))
        await house.admin.call(house.admin.runs.CancelRun, other)


async def test_workers_and_pools(house: Any) -> None:
    ids, token = [], ""
    while True:
        request = fleet_pb2.ListWorkersRequest(page_size=2, page_token=token)
        page = await house.admin.call(house.admin.fleet.ListWorkers, request)
        ids += [worker.worker_id for worker in page.workers]
        token = page.next_page_token
        if not token:
            break
    assert ids == ["w1", "w2", "w3"]
    pools = await house.admin.call(house.admin.fleet.ListPools, fleet_pb2.ListPoolsRequest())
    assert [(pool.pool, pool.workers, pool.slots, pool.legs) for pool in pools.pools] == [
        ("a", 2, 8, 2),
        ("b", 1, 4, 1),
    ]
