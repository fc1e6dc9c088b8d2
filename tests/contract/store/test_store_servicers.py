"""What the scheduler's servicers answer from the record, and how they refuse."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any, cast

import grpc
import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2 as pb
from flint_ops.config import PostgresSettings
from flint_rpc.errors import Refused
from flint_scheduler.principals import PrincipalServicer
from flint_scheduler.reading import Reading
from flint_store.definitions import DefinitionCache
from flint_store.engine import create_engine
from support.record import FAILED, RUNNING, SUCCEEDED, add_entries, add_runs, add_version

CONTEXT = cast("grpc.aio.ServicerContext[Any, Any]", None)  # the servicers do not use it
MESSAGE_BYTES = 2**20


class Told:
    """Whom the servicer told of changed definitions."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    async def __call__(self, namespace: str, workflow_id: str) -> None:
        self.calls.append((namespace, workflow_id))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def cache(engine: AsyncEngine) -> DefinitionCache:
    return DefinitionCache(engine, ttl_s=3600)


@pytest.fixture
def reading(engine: AsyncEngine, cache: DefinitionCache, told: Told) -> Reading:
    return Reading(engine, cache, message_bytes=MESSAGE_BYTES, definitions_changed=told)


@pytest.fixture
def principals(engine: AsyncEngine) -> PrincipalServicer:
    return PrincipalServicer(engine)


@pytest.fixture
async def away(unused_tcp_port: int) -> AsyncIterator[AsyncEngine]:
    """An engine whose PostgreSQL is not there."""
    created = create_engine(
        PostgresSettings(dsn=SecretStr(f"postgresql://flint@127.0.0.1:{unused_tcp_port}/x")), "reading"
    )
    yield created
    await created.dispose()


def put(version: str = "1.0.0", body: bytes = b"program", **more: Any) -> pb.PutWorkflowRequest:
    fields = {"namespace": "default", "workflow_id": "orders", "version": version, "source": "s", "program": body}
    return pb.PutWorkflowRequest(**(fields | {"definition_hash": sha256(body).digest()} | more))


def refusal(raised: pytest.ExceptionInfo[Refused]) -> tuple[str, str]:
    return raised.value.code.name, raised.value.reason_name


async def test_an_applied_version_is_used_at_once_by_this_replica(
    reading: Reading, cache: DefinitionCache, told: Told
) -> None:
    first = await reading.PutWorkflow(put(), CONTEXT)
    assert first.created
    assert (await cache.resolve("default", "orders")).version == "1.0.0"
    await reading.PutWorkflow(put("1.1.0", b"next"), CONTEXT)
    assert (await cache.resolve("default", "orders")).version == "1.1.0"
    await reading.DeleteWorkflow(
        pb.DeleteWorkflowRequest(namespace="default", workflow_id="orders", version="1.1.0"), CONTEXT
    )
    assert (await cache.resolve("default", "orders")).version == "1.0.0"
    assert told.calls == [("default", "orders")] * 3
    assert not (await reading.PutWorkflow(put(), CONTEXT)).created


async def test_workflows_are_read_by_version_latest_and_in_lists(reading: Reading) -> None:
    for version in ("1.0.0", "1.1.0", "2.0.0-rc.1"):
        await reading.PutWorkflow(put(version, version.encode()), CONTEXT)

    async def read(**fields: Any) -> list[tuple[str, str]]:
        response = await reading.ReadWorkflows(
            pb.ReadWorkflowsRequest(namespace="default", limit=10, **fields), CONTEXT
        )
        return [(w.version, w.source) for w in response.workflows]

    assert await read() == [("2.0.0-rc.1", "")]
    assert await read(workflow_id="orders") == [("2.0.0-rc.1", "")]
    assert await read(workflow_id="orders", with_source=True) == [("2.0.0-rc.1", "s")]
    assert await read(workflow_id="orders", version="1.0.0", with_source=True) == [("1.0.0", "s")]
    assert await read(workflow_id="orders", version="-", after="1.1.0") == [("1.0.0", "")]


async def test_a_snapshot_s_steps_belong_to_its_run(reading: Reading, engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    [run_id] = await add_runs(engine, [{"definition_id": definition, "state": RUNNING, "position": 2, "change": 3}])
    steps = [runs_pb2.StepRecord(step=f"/do/{n}") for n in range(3)]
    await add_entries(  # the third entry came with a later change of the run
        engine, run_id, [{"steps": journal_pb2.JournalEntry(steps=[s]).SerializeToString()} for s in steps]
    )
    response = await reading.ReadRuns(pb.ReadRunsRequest(run_ids=[run_id], with_steps=True), CONTEXT)
    assert response.runs[0].change == 3
    assert list(response.steps) == steps[:2]
    history = await reading.ReadHistory(pb.ReadHistoryRequest(run_id=run_id, limit=2), CONTEXT)
    assert (history.namespace, [e.index for e in history.entries]) == ("default", [1, 2])
    assert await reading.ReadHistory(pb.ReadHistoryRequest(run_id=os.urandom(16), limit=2), CONTEXT) == (
        pb.ReadHistoryResponse()
    )


async def test_answers_fit_into_a_message(reading: Reading, engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    payload = os.urandom(200_000)
    run_ids = await add_runs(
        engine, [{"definition_id": definition, "state": SUCCEEDED, "output": payload} for _ in range(10)]
    )
    response = await reading.ReadRuns(pb.ReadRunsRequest(run_ids=run_ids), CONTEXT)
    assert response.runs and response.left_out
    assert len(response.runs) + len(response.left_out) == 10
    assert response.ByteSize() <= MESSAGE_BYTES


async def test_lists_filter(reading: Reading, engine: AsyncEngine) -> None:
    definition = await add_version(engine)
    await add_runs(engine, [{"definition_id": definition, "state": s} for s in (FAILED, SUCCEEDED)])
    response = await reading.ListRuns(
        pb.ListRunsRequest(namespace="default", limit=9999, states=[runs_pb2.Run.STATE_FAILED]), CONTEXT
    )
    assert [run.state for run in response.runs] == [runs_pb2.Run.STATE_FAILED]


async def test_refusals_of_workflows(reading: Reading, engine: AsyncEngine) -> None:
    await reading.PutWorkflow(put(), CONTEXT)
    definition = await add_version(engine, version="3.0.0")
    await add_runs(engine, [{"definition_id": definition}])
    delete = pb.DeleteWorkflowRequest(namespace="default", workflow_id="orders", version="3.0.0")
    absent = pb.ReadWorkflowsRequest(namespace="default", workflow_id="none", limit=1)
    not_a_version = pb.ReadWorkflowsRequest(namespace="default", workflow_id="orders", version="one", limit=1)
    for call, expected in [
        (reading.PutWorkflow(put(body=b"other"), CONTEXT), ("ALREADY_EXISTS", "VERSION_EXISTS")),
        (reading.PutWorkflow(put(namespace="nowhere"), CONTEXT), ("NOT_FOUND", "NAMESPACE_NOT_FOUND")),
        (reading.PutWorkflow(put(version="one"), CONTEXT), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (reading.PutWorkflow(put(definition_hash=bytes(32)), CONTEXT), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (reading.DeleteWorkflow(delete, CONTEXT), ("FAILED_PRECONDITION", "WORKFLOW_IN_USE")),
        (reading.ReadWorkflows(absent, CONTEXT), ("NOT_FOUND", "WORKFLOW_NOT_FOUND")),
        (reading.ReadWorkflows(not_a_version, CONTEXT), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (reading.ReadRuns(pb.ReadRunsRequest(), CONTEXT), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (reading.ReadRuns(pb.ReadRunsRequest(run_ids=[b"short"]), CONTEXT), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (reading.ListRuns(pb.ListRunsRequest(namespace="default"), CONTEXT), ("INVALID_ARGUMENT", "FIELD_INVALID")),
    ]:
        with pytest.raises(Refused) as raised:
            await call
        assert refusal(raised) == expected


async def test_keys_through_the_servicer(principals: PrincipalServicer) -> None:
    create = pb.CreateKeyRequest(
        namespace="-", key_id="root1", secret_hash=bytes(32), display_name="root", role=identity_pb2.ROLE_ADMIN
    )
    key = (await principals.CreateKey(create, CONTEXT)).key
    authenticate = pb.AuthenticateRequest(key_id="root1", secret_hash=bytes(32))
    assert (await principals.Authenticate(authenticate, CONTEXT)).key == key
    listed = await principals.ListKeys(pb.ListKeysRequest(namespace="-", limit=10), CONTEXT)
    assert list(listed.keys) == [key]
    wrong = pb.AuthenticateRequest(key_id="root1", secret_hash=bytes(31) + b"1")
    taken, no_role, short = (pb.CreateKeyRequest() for _ in range(3))
    for request, change in ((taken, {"namespace": "default"}), (no_role, {"role": 0}), (short, {"secret_hash": b"x"})):
        request.CopyFrom(create)
        for name, value in change.items():
            setattr(request, name, value)
    revoke = pb.RevokeKeyRequest(namespace="-", key_id="root1")
    for call, expected in [
        (principals.Authenticate(wrong, CONTEXT), ("UNAUTHENTICATED", "CREDENTIALS_INVALID")),
        (principals.Authenticate(pb.AuthenticateRequest(), CONTEXT), ("UNAUTHENTICATED", "CREDENTIALS_INVALID")),
        (principals.CreateKey(taken, CONTEXT), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (principals.CreateKey(no_role, CONTEXT), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (principals.CreateKey(short, CONTEXT), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (principals.RevokeKey(revoke, CONTEXT), ("FAILED_PRECONDITION", "LAST_ADMIN_KEY")),
        (
            principals.RevokeKey(pb.RevokeKeyRequest(namespace="-", key_id="no"), CONTEXT),
            ("NOT_FOUND", "KEY_NOT_FOUND"),
        ),
        (principals.ListKeys(pb.ListKeysRequest(namespace="-"), CONTEXT), ("INVALID_ARGUMENT", "FIELD_INVALID")),
    ]:
        with pytest.raises(Refused) as raised:
            await call
        assert refusal(raised) == expected


async def test_without_postgresql_everything_is_unavailable_and_may_be_tried_again(away: AsyncEngine) -> None:
    reading = Reading(away, DefinitionCache(away), message_bytes=MESSAGE_BYTES, definitions_changed=Told())
    principals = PrincipalServicer(away)
    for call in [
        reading.ReadRuns(pb.ReadRunsRequest(run_ids=[bytes(16)]), CONTEXT),
        reading.PutWorkflow(put(), CONTEXT),
        principals.Authenticate(pb.AuthenticateRequest(key_id="a", secret_hash=bytes(32)), CONTEXT),
    ]:
        with pytest.raises(Refused) as raised:
            await call
        assert refusal(raised) == ("UNAVAILABLE", "COMPONENT_UNAVAILABLE")
        assert raised.value.retry_after_s is not None
        assert "flint@" not in raised.value.message
