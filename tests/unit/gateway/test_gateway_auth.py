from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2, runs_pb2_grpc
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2
from flint_gateway import auth
from flint_rpc.server import Service
from support.eventually import eventually

DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


async def test_anonymous_and_unknown_callers_are_refused(house: Any, refused: Any) -> None:
    with refused(UNAUTHENTICATED, "CREDENTIALS_MISSING"):
        await house.client("").start()
    with refused(UNAUTHENTICATED, "CREDENTIALS_INVALID"):
        await house.client("nonsense").start()
    stranger = house.client("flint_abcdef_" + "0" * 48)
    for _ in range(3):
        with refused(UNAUTHENTICATED, "CREDENTIALS_INVALID"):
            await stranger.start()
    assert house.record.lookups == 1  # a guess is remembered for a moment


async def test_health_is_open(house: Any) -> None:
    async with grpc.aio.insecure_channel(house.gateway.address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_callers_of_one_moment_share_a_lookup(empty_house: Any) -> None:
    house = empty_house
    await house.open("identity.cache_ttl_s=60")
    await asyncio.gather(*(house.admin.start() for _ in range(30)))
    assert house.record.lookups == 1


async def test_a_key_in_use_is_looked_up_again_before_anybody_has_to_wait(empty_house: Any) -> None:
    house = empty_house
    await house.open("identity.cache_ttl_s=60")
    await house.admin.start()
    keys = house.gateway._keys
    ((digest, entry),) = keys._good.items()
    keys._good[digest] = replace(entry, early=0.0)  # half of its time has passed
    ((_, authorization),) = house.admin.metadata
    assert [keys.known(authorization) for _ in range(100)] == [entry.principal] * 100, "answered at once"
    await eventually(lambda: keys._good[digest].early > entry.early)
    assert house.record.lookups == 2
    assert keys._good[digest].until > entry.until
    assert keys.known(authorization) == entry.principal
    assert not keys._asking


async def test_a_key_that_expires_soon_is_not_looked_up_again_and_again(empty_house: Any) -> None:
    house = empty_house
    await house.open("identity.cache_ttl_s=60")
    token = house.record.key("default", identity_pb2.ROLE_OPERATOR)
    house.record.keys[token.split("_")[1]][1].expire_time.FromSeconds(int(time.time()) + 50)
    await house.client(token).start()
    (entry,) = house.gateway._keys._good.values()
    assert entry.early == math.inf
    assert entry.until < time.monotonic() + 50


async def test_a_revoked_key_is_refused_after_the_cache_ttl(empty_house: Any, refused: Any) -> None:
    house = empty_house
    await house.open("identity.cache_ttl_s=0.2")
    token = house.record.key("default", identity_pb2.ROLE_OPERATOR)
    caller = house.client(token)
    await caller.start()
    name = f"namespaces/default/keys/{token.split('_')[1]}"
    await house.admin.call(house.admin.identity.RevokeKey, identity_pb2.RevokeKeyRequest(name=name))
    keys = house.gateway._keys
    await eventually(lambda: keys.known(f"Bearer {token}") is None)
    with refused(UNAUTHENTICATED, "CREDENTIALS_INVALID"):
        await caller.start()


async def test_an_open_stream_ends_with_its_key(empty_house: Any, refused: Any) -> None:
    house = empty_house
    await house.open("identity.cache_ttl_s=0.1")
    token = house.record.key("default", identity_pb2.ROLE_VIEWER)
    viewer = house.client(token)
    run = house.record.add()
    watch = viewer.runs.WatchRun(runs_pb2.WatchRunRequest(name=run.name), metadata=viewer.metadata, timeout=20)
    await watch.read()
    waits = viewer.runs.AwaitRuns(metadata=viewer.metadata, timeout=20)
    await waits.write(runs_pb2.AwaitRunsRequest(names=["nonsense"]))
    await waits.read()
    house.record.keys[token.split("_")[1]][1].revoke_time.GetCurrentTime()
    await eventually(lambda: house.gateway._keys.known(f"Bearer {token}") is None)
    house.record.change(run, runs_pb2.Run.STATE_SUCCEEDED)
    with refused(UNAUTHENTICATED, "CREDENTIALS_INVALID"):
        await watch.read()
    with refused(UNAUTHENTICATED, "CREDENTIALS_INVALID"):
        await waits.write(runs_pb2.AwaitRunsRequest(names=[run.name]))
        await waits.read()


async def test_a_key_expires_within_the_cache_too(house: Any) -> None:
    token = house.record.key("default", identity_pb2.ROLE_VIEWER)
    key = house.record.keys[token.split("_")[1]][1]
    key.expire_time.GetCurrentTime()
    caller = house.client(token)
    await caller.call(caller.identity.WhoAmI, identity_pb2.WhoAmIRequest())
    assert house.gateway._keys.known(f"Bearer {token}") is None


async def test_roles_hold_in_their_namespace_only(house: Any, refused: Any) -> None:
    viewer = house.client(house.record.key("default", identity_pb2.ROLE_VIEWER))
    operator = house.client(house.record.key("default", identity_pb2.ROLE_OPERATOR))
    other = house.client(house.record.key("other", identity_pb2.ROLE_ADMIN))
    run = await operator.start()
    get = runs_pb2.GetRunRequest(name=run.name)
    assert (await viewer.call(viewer.runs.GetRun, get)).run.name == run.name
    with refused(DENIED, "ROLE_INSUFFICIENT") as caught:
        await viewer.start()
    assert caught["error"].metadata == {"required_role": "operator", "namespace": "default"}
    with refused(DENIED, "ROLE_INSUFFICIENT"):
        await other.call(other.runs.GetRun, get)
    # The same run under the caller's own namespace is not there.
    theirs = run.name.replace("default", "other")
    with refused(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND"):
        await other.call(other.runs.GetRun, runs_pb2.GetRunRequest(name=theirs))
    with refused(DENIED, "ROLE_INSUFFICIENT"):
        request = workflows_pb2.ApplyWorkflowRequest(parent="namespaces/default", source="x")
        await operator.call(operator.workflows.ApplyWorkflow, request)
    drain = fleet_pb2.DrainWorkerRequest(name="workers/" + "1" * 32)
    with refused(DENIED, "ROLE_INSUFFICIENT"):
        await other.call(other.fleet.DrainWorker, drain)
    await house.admin.call(house.admin.fleet.DrainWorker, drain)
    assert house.registry.drained == ["1" * 32]
    release = fleet_pb2.ReleaseWorkerRequest(name="workers/" + "1" * 32)
    with refused(DENIED, "ROLE_INSUFFICIENT"):
        await other.call(other.fleet.ReleaseWorker, release)
    assert (await house.admin.call(house.admin.fleet.ReleaseWorker, release)).released


async def test_streams_are_authorised_name_by_name(house: Any, refused: Any) -> None:
    run = await house.admin.start()
    await house.finish(run)
    viewer = house.client(house.record.key("other", identity_pb2.ROLE_VIEWER))
    call = viewer.runs.AwaitRuns(
        iter([runs_pb2.AwaitRunsRequest(names=[run.name])]), metadata=viewer.metadata, timeout=10
    )
    answer = await call.read()
    assert answer.runs[0].error.code == DENIED.value[0]
    with refused(UNAUTHENTICATED, "CREDENTIALS_MISSING"):
        await house.client("").runs.AwaitRuns(iter([]), timeout=10).read()
    with refused(DENIED, "ROLE_INSUFFICIENT"):
        watch = viewer.runs.WatchRun(runs_pb2.WatchRunRequest(name=run.name), metadata=viewer.metadata, timeout=10)
        await watch.read()


async def test_lookups_survive_the_loss_of_a_scheduler(house: Any) -> None:
    await house.servers[0].stop(0)
    for _ in range(3):
        caller = house.client(house.record.key("default", identity_pb2.ROLE_OPERATOR))
        await caller.start()


def test_a_method_without_a_role_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(
        runs_pb2.DESCRIPTOR.services_by_name["RunService"], runs_pb2_grpc.add_RunServiceServicer_to_server, None
    )
    policies = {method: auth.POLICIES[method] for method in service.methods}
    monkeypatch.setattr(auth, "POLICIES", policies)
    auth.check_policies([service])
    del policies["/flint.runs.v1.RunService/CancelRun"]
    with pytest.raises(RuntimeError, match="CancelRun"):
        auth.check_policies([service])


async def test_keys_are_made_listed_and_revoked(house: Any, refused: Any) -> None:
    admin = house.admin
    make = identity_pb2.CreateKeyRequest(parent="namespaces/default", display_name="ci", role=identity_pb2.ROLE_ADMIN)
    created = await admin.call(admin.identity.CreateKey, make)
    local = house.client(created.secret)
    me = await local.call(local.identity.WhoAmI, identity_pb2.WhoAmIRequest())
    assert me.key.name == created.key.name
    for _ in range(2):
        await local.call(local.identity.CreateKey, make)
    with refused(DENIED, "ROLE_INSUFFICIENT"):
        everywhere = identity_pb2.CreateKeyRequest(parent="namespaces/-", display_name="x", role=1)
        await local.call(local.identity.CreateKey, everywhere)
    names, token = [], ""
    while True:
        page = await local.call(
            local.identity.ListKeys,
            identity_pb2.ListKeysRequest(parent="namespaces/default", page_size=2, page_token=token),
        )
        names += [key.name for key in page.keys]
        token = page.next_page_token
        if not token:
            break
    assert len(names) == len(set(names)) == 3
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID") as caught:
        await admin.call(admin.identity.CreateKey, identity_pb2.CreateKeyRequest(parent="namespaces/-"))
    assert [violation.field for violation in caught["error"].field_violations] == ["display_name", "role"]
    revoked = await admin.call(admin.identity.RevokeKey, identity_pb2.RevokeKeyRequest(name=created.key.name))
    assert revoked.key.HasField("revoke_time")
