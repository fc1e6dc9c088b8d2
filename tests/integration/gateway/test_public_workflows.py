"""WorkflowService: apply, get, list, delete; what a refusal says."""

from __future__ import annotations

import re

import pytest

from flint_contracts.gen.flint.workflows.v1 import workflows_pb2
from flint_core.problems import ProblemType
from flint_sdk import (
    DefinitionInvalid,
    DefinitionUnsupported,
    InvalidArgument,
    PageTokenInvalid,
    VersionExists,
    WorkflowInUse,
    WorkflowNotFound,
)
from support.house import PARENT, House, definition, refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY = "do: [{a: {set: {n: 1}}}]"


async def test_a_version_never_changes(house: House) -> None:
    name = house.name()
    first = await house.flint.apply(definition(BODY, name))
    again = await house.flint.apply(definition(BODY, name))
    assert (first.created, again.created) == (True, False)
    assert again.workflow == first.workflow
    with pytest.raises(VersionExists):
        await house.flint.apply(definition("do: [{a: {set: {n: 2}}}]", name))
    assert (await house.flint.get_workflow(name)).source == definition(BODY, name)


async def test_versions_are_ordered_as_versions(house: House) -> None:
    name = house.name()
    for version in ("1.9.0", "1.10.0-rc.1", "1.10.0", "0.1.0"):
        await house.apply(f"do: [{{a: {{set: {{v: '{version}'}}}}}}]", name, version)
    versions = [w.version async for w in house.flint.list_workflows(name)]
    assert versions == ["1.10.0", "1.10.0-rc.1", "1.9.0", "0.1.0"]
    assert (await house.flint.get_workflow(name)).version == "1.10.0"
    assert (await house.flint.get_workflow(name, "0.1.0")).latest is False
    started = await house.flint.start(name)
    assert await started.result(60) == {"v": "1.10.0"}
    assert await (await house.flint.start(name, version="0.1.0")).result(60) == {"v": "0.1.0"}
    listed = [w async for w in house.flint.list_workflows() if w.workflow_id == name]
    assert [(w.version, w.source) for w in listed] == [("1.10.0", "")]


async def test_a_version_in_use_stays_until_its_runs_ended(house: House) -> None:
    name = await house.apply("do: [{w: {wait: PT1H}}]")
    handle = await house.flint.start(name)
    with pytest.raises(WorkflowInUse):
        await house.flint.delete_workflow(name, "1.0.0")
    await handle.cancel()
    await house.flint.wait(handle.id, 60)
    await house.flint.delete_workflow(name, "1.0.0")
    with pytest.raises(WorkflowNotFound):
        await house.flint.get_workflow(name)
    with pytest.raises(WorkflowNotFound):
        await house.flint.start(name)
    with pytest.raises(WorkflowNotFound):
        await house.flint.delete_workflow(name, "1.0.0")
    assert (await handle.get()).state.value == "CANCELLED"  # its history stays
    assert (await house.flint.apply(definition(BODY, name))).created  # and the version may be given anew


async def test_a_check_stores_nothing(house: House) -> None:
    name = house.name()
    checked = await house.flint.apply(definition(BODY, name), validate_only=True)
    assert checked.workflow.workflow_id == name
    with pytest.raises(WorkflowNotFound):
        await house.flint.get_workflow(name)


async def test_what_is_wrong_is_named_by_line_and_column(house: House) -> None:
    source = definition("do:\n  - a:\n      set: {n: 1}\n  - b:\n      waits: PT1S\n", house.name())
    with pytest.raises(DefinitionInvalid) as refused:
        await house.flint.apply(source)
    assert refused.value.reason == "DEFINITION_INVALID"
    assert any(v.field.startswith("source:6:") and "/do/1/b" in v.description for v in refused.value.violations), (
        refused.value.violations
    )


async def test_what_is_not_built_yet_is_refused_as_such(house: House) -> None:
    source = definition("do:\n  - a:\n      set: {n: 1}\n      metadata: {flint: {residency: eu}}\n", house.name())
    with pytest.raises(DefinitionUnsupported) as refused:
        await house.flint.apply(source)
    assert refused.value.violations[0].field.startswith("source:5:"), refused.value.violations


async def test_an_expression_that_jq_refuses_is_found_at_apply(house: House) -> None:
    source = definition("do:\n  - a:\n      set:\n        n: '${ [.[] | nosuch(1)] }'\n", house.name())
    with pytest.raises(DefinitionInvalid) as refused:
        await house.flint.apply(source)
    (violation,) = refused.value.violations
    assert re.match(r"source:[345]:\d+", violation.field), violation
    assert "nosuch/1 is not defined" in violation.description
    assert "/do/0/a" in violation.description


def with_expression(expression: str) -> str:
    return f"do:\n  - a:\n      set:\n        n: '${{ {expression} }}'\n"


@pytest.mark.parametrize("expression", ["$ENV", "$ENV.HOME?", 'include "a"; .', 'import "a" as $a; $a'])
async def test_expressions_cannot_name_what_is_outside(house: House, expression: str) -> None:
    with pytest.raises(DefinitionInvalid):
        await house.flint.apply(definition(with_expression(expression), house.name()))


@pytest.mark.parametrize("expression", ["env.HOME", "input", "[inputs]", "env | keys", "halt"])
async def test_expressions_cannot_reach_what_is_outside(house: House, expression: str) -> None:
    run = await house.run(with_expression(expression))
    assert run.error is not None
    assert (run.error.type, run.error.instance) == (ProblemType.EXPRESSION, "/do/0/a")


@pytest.mark.parametrize("source", ["", "do: [", "[1]", "document: 5", "\x00", "a: &x [*x, *x]"])
async def test_texts_that_are_no_definition(house: House, source: str) -> None:
    with pytest.raises(InvalidArgument):
        await house.flint.apply(source)


async def test_a_definition_of_another_namespace_is_refused(house: House) -> None:
    source = "document: {dsl: 1.0.3, namespace: other, name: x, version: 1.0.0}\n" + BODY
    with pytest.raises(DefinitionInvalid) as refused:
        await house.flint.apply(source)
    assert refused.value.violations[0].field.startswith("source:1:")


async def test_pages_of_versions(house: House) -> None:
    name = house.name()
    for number in range(5):
        await house.apply(BODY, name, f"1.{number}.0")
    parent, seen, token = f"{PARENT}/workflows/{name}", [], ""
    for size in (2, 2, 1):
        request = workflows_pb2.ListWorkflowsRequest(parent=parent, page_size=2, page_token=token)
        page = await house.raw.workflows.ListWorkflows(request, metadata=house.raw.metadata)
        assert len(page.workflows) == size
        seen += [w.version for w in page.workflows]
        token = page.next_page_token
    assert (seen, token) == (["1.4.0", "1.3.0", "1.2.0", "1.1.0", "1.0.0"], "")
    first = await house.raw.workflows.ListWorkflows(
        workflows_pb2.ListWorkflowsRequest(parent=parent, page_size=2), metadata=house.raw.metadata
    )
    foreign = workflows_pb2.ListWorkflowsRequest(parent=PARENT, page_token=first.next_page_token)
    refused = await refusal(house.raw.workflows.ListWorkflows(foreign, metadata=house.raw.metadata))
    assert isinstance(refused, PageTokenInvalid)
    negative = workflows_pb2.ListWorkflowsRequest(parent=PARENT, page_size=-1)
    refused = await refusal(house.raw.workflows.ListWorkflows(negative, metadata=house.raw.metadata))
    assert [v.field for v in refused.violations] == ["page_size"]


async def test_a_container_is_refused_where_no_worker_has_an_engine(house: House) -> None:
    workers = [worker async for worker in house.flint.list_workers()]
    if any("container" in worker.functions for worker in workers):
        pytest.skip("a worker of this machine found a container engine")
    with pytest.raises(DefinitionUnsupported) as refused:
        await house.apply("do: [{a: {run: {container: {image: alpine}}}}]")
    assert "no worker found a container engine" in refused.value.message
    assert refused.value.violations[0].field.startswith("source:2:")
