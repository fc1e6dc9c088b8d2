"""Reflection and health on every service with a gRPC port; and `buf curl`, which needs no files with them."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from support.house import PARENT, House

pytestmark = pytest.mark.asyncio(loop_scope="session")

BUF = Path(sys.executable).parent / "buf"
PUBLIC = {
    "flint.approvals.v1.ApprovalService",
    "flint.events.v1.EventService",
    "flint.fleet.v1.FleetService",
    "flint.functions.v1.FunctionService",
    "flint.functions.v1.FunctionWorkerService",
    "flint.identity.v1.IdentityService",
    "flint.limits.v1.LimitService",
    "flint.namespaces.v1.NamespaceService",
    "flint.payloads.v1.PayloadService",
    "flint.runs.v1.RunControlService",
    "flint.runs.v1.RunService",
    "flint.schedules.v1.ScheduleService",
    "flint.workflows.v1.WorkflowService",
}
INTERNAL = {
    f"flint.scheduling.v1.{name}Service"
    for name in (
        "ApprovalStore",
        "Control",
        "EventStore",
        "FunctionRegistry",
        "LimitStore",
        "NamespaceSettings",
        "Principal",
        "ScheduleStore",
        "Scheduling",
    )
}
SERVES = {
    "gateway": PUBLIC,
    "scheduler-1": INTERNAL,
    "scheduler-2": INTERNAL,
    "registry-1": {"flint.registry.v1.RegistryService"},
    "registry-2": {"flint.registry.v1.RegistryService"},
}


async def reflected(channel: grpc.aio.Channel, version: str) -> set[str]:
    """Names of the services that a server lists."""
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    call = ask()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    await call.done_writing()
    names = {service.name for service in answer.list_services_response.service}
    call.cancel()
    return names


@pytest.mark.parametrize("name", sorted(SERVES))
async def test_every_service_tells_what_it_serves(house: House, name: str) -> None:
    async with grpc.aio.insecure_channel(house.stack.addresses[name]) as channel:
        for version in ("v1", "v1alpha"):
            names = await reflected(channel, version)
            assert {found for found in names if found.startswith("flint.")} == SERVES[name]
            assert "grpc.health.v1.Health" in names
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVES[name]):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, service


@pytest.mark.parametrize("name", ["scheduler-1", "registry-1"])
async def test_internal_services_want_the_clusters_token(house: House, name: str) -> None:
    method = {
        "scheduler-1": "/flint.scheduling.v1.SchedulingService/ListRuns",
        "registry-1": "/flint.registry.v1.RegistryService/ListWorkers",
    }[name]
    async with grpc.aio.insecure_channel(house.stack.addresses[name]) as channel:
        for metadata in ((), (("authorization", f"Bearer {house.stack.admin_key}"),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(method)(b"", metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def buf_curl(house: House, method: str, data: object, key: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", "grpc-v1",
        *(("-H", f"authorization: Bearer {key}") if key else ()),
        "-d", json.dumps(data), f"http://{house.stack.gateway}/{method}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


async def test_buf_curl_starts_and_lists_runs(house: House) -> None:
    name, key = await house.apply("do: [{s: {set: {n: 1}}}]"), house.stack.admin_key
    code, output, errors = await buf_curl(
        house, "flint.runs.v1.RunService/StartRun", {"parent": PARENT, "workflowId": name}, key
    )
    assert code == 0, errors
    run = json.loads(output)["run"]["name"]
    await house.flint.wait(run, 60)
    code, output, errors = await buf_curl(
        house, "flint.runs.v1.RunService/ListRuns", {"parent": PARENT, "workflowId": name}, key
    )
    assert code == 0, errors
    (listed,) = json.loads(output)["runs"]
    assert (listed["name"], listed["state"]) == (run, "STATE_SUCCEEDED")


async def test_buf_curl_shows_a_refusal(house: House) -> None:
    code, _, errors = await buf_curl(house, "flint.runs.v1.RunService/ListRuns", {"parent": PARENT}, "")
    assert code != 0
    told = json.loads(errors)
    assert told["code"] == "unauthenticated"
    (detail,) = told["details"]
    info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(detail["value"] + "=="))
    assert (detail["type"], info.reason, info.domain) == (
        "google.rpc.ErrorInfo",
        "CREDENTIALS_MISSING",
        "flint.dev",
    )
