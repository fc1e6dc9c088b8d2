"""Keys and roles: who may do what, and for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2
from flint_sdk import (
    AsyncFlint,
    CredentialsInvalid,
    CredentialsMissing,
    FlintError,
    KeyNotFound,
    LastAdminKey,
    Role,
    RoleInsufficient,
)
from support.house import PARENT, House, Stubs, definition, refusal
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY = "do: [{s: {set: {n: 1}}}]"


async def outcome(stubs: Stubs, what: str, name: str) -> str:
    """`ok`, or the reason of the refusal."""
    raw = {
        "read": lambda: stubs.runs.ListRuns(runs_pb2.ListRunsRequest(parent=PARENT), metadata=stubs.metadata),
        "start": lambda: stubs.runs.StartRun(
            runs_pb2.StartRunRequest(parent=PARENT, workflow_id=name), metadata=stubs.metadata
        ),
        "run": lambda: stubs.runs.RunWorkflow(
            runs_pb2.RunWorkflowRequest(start=runs_pb2.StartRunRequest(parent=PARENT, workflow_id=name)),
            metadata=stubs.metadata,
        ),
        "apply": lambda: stubs.workflows.ApplyWorkflow(
            workflows_pb2.ApplyWorkflowRequest(parent=PARENT, source=definition(BODY, name)), metadata=stubs.metadata
        ),
        "keys": lambda: stubs.identity.ListKeys(identity_pb2.ListKeysRequest(parent=PARENT), metadata=stubs.metadata),
        "all keys": lambda: stubs.identity.ListKeys(
            identity_pb2.ListKeysRequest(parent="namespaces/-"), metadata=stubs.metadata
        ),
        "workers": lambda: stubs.fleet.ListWorkers(fleet_pb2.ListWorkersRequest(), metadata=stubs.metadata),
        "drain": lambda: stubs.fleet.DrainWorker(
            fleet_pb2.DrainWorkerRequest(name="workers/00000000000000000000000000000000"), metadata=stubs.metadata
        ),
        "other namespace": lambda: stubs.runs.ListRuns(
            runs_pb2.ListRunsRequest(parent="namespaces/other"), metadata=stubs.metadata
        ),
    }
    try:
        await refusal(raw[what]())
    except AssertionError:
        return "ok"
    return (await refusal(raw[what]())).reason


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (Role.VIEWER, {"read", "workers"}),
        (Role.OPERATOR, {"read", "workers", "start", "run"}),
        (Role.EDITOR, {"read", "workers", "start", "run", "apply"}),
        (Role.ADMIN, {"read", "workers", "start", "run", "apply", "keys"}),
    ],
)
async def test_a_role_allows_this_and_no_more(house: House, role: Role, allowed: set[str]) -> None:
    name = await house.apply(BODY)
    created = await house.flint.create_key(f"a {role}", role)
    stubs = house.as_key(created.secret)
    whats = {"read", "start", "run", "apply", "keys", "all keys", "workers", "drain", "other namespace"}
    found = {what: await outcome(stubs, what, name) for what in whats}
    assert found == {what: "ok" if what in allowed else "ROLE_INSUFFICIENT" for what in whats}
    me = await stubs.identity.WhoAmI(identity_pb2.WhoAmIRequest(), metadata=stubs.metadata)
    assert me.key.name == created.key.name


async def test_nobody_gives_more_than_he_has(house: House) -> None:
    created = await house.flint.create_key("an admin", Role.ADMIN)
    stubs = house.as_key(created.secret)
    request = identity_pb2.CreateKeyRequest(parent="namespaces/-", display_name="x", role=identity_pb2.ROLE_ADMIN)
    refused = await refusal(stubs.identity.CreateKey(request, metadata=stubs.metadata))
    assert isinstance(refused, RoleInsufficient)


@pytest.mark.parametrize("key", ["", "nonsense", "flint_aaaaaaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"])
async def test_without_a_good_key_nothing_is_told(house: House, key: str) -> None:
    stubs = house.as_key(key)
    wanted = CredentialsInvalid if key else CredentialsMissing
    for what in ("read", "start", "apply", "keys", "workers", "other namespace"):
        assert await outcome(stubs, what, "x") == ("CREDENTIALS_INVALID" if key else "CREDENTIALS_MISSING")
    watch = stubs.runs.WatchRun(
        runs_pb2.WatchRunRequest(name=f"{PARENT}/runs/0197b2a0-0000-7000-8000-000000000000"), metadata=stubs.metadata
    )
    assert isinstance(await refusal(watch.read()), wanted)


async def test_a_revoked_key_is_refused_soon(house: House) -> None:
    created = await house.flint.create_key("short-lived", Role.VIEWER)
    async with AsyncFlint(house.stack.gateway, created.secret) as client:
        assert [r async for r in client.list_runs(workflow="none")] == []
        revoked = await house.flint.revoke_key(created.key.id)
        assert revoked.revoke_time is not None

        async def refused() -> FlintError | None:
            try:
                [r async for r in client.list_runs(workflow="none")]
            except FlintError as error:
                return error
            return None

        error = await eventually(refused, house.stack.settings.identity.cache_ttl_s + 60)
    assert isinstance(error, CredentialsInvalid)
    assert created.key.id not in [key.id async for key in house.flint.list_keys()]
    assert created.key.id in [key.id async for key in house.flint.list_keys(show_revoked=True)]


async def test_a_key_ends_at_its_time(house: House) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=4)
    created = await house.flint.create_key("for a moment", Role.VIEWER, expire_time=soon)
    stubs = house.as_key(created.secret)

    async def refused() -> bool:
        return await outcome(stubs, "read", "") == "CREDENTIALS_INVALID"

    await eventually(refused)
    assert datetime.now(UTC) >= soon
    past = identity_pb2.CreateKeyRequest(parent=PARENT, display_name="x", role=identity_pb2.ROLE_VIEWER)
    past.expire_time.FromSeconds(1)
    error = await refusal(house.raw.identity.CreateKey(past, metadata=house.raw.metadata))
    assert [v.field for v in error.violations] == ["expire_time"]


async def test_the_last_way_in_cannot_be_closed(house: House) -> None:
    admins = [key async for key in house.flint.list_keys(all_namespaces=True)]
    assert len(admins) == 1
    request = identity_pb2.RevokeKeyRequest(name=admins[0].name)
    refused = await refusal(house.raw.identity.RevokeKey(request, metadata=house.raw.metadata))
    assert isinstance(refused, LastAdminKey)
    missing = identity_pb2.RevokeKeyRequest(name=f"{PARENT}/keys/aaaaaaaaaaaa")
    assert isinstance(await refusal(house.raw.identity.RevokeKey(missing, metadata=house.raw.metadata)), KeyNotFound)


async def test_secrets_are_nowhere_at_rest_or_in_logs(house: House) -> None:
    created = await house.flint.create_key("secret", Role.VIEWER)
    assert await outcome(house.as_key(created.secret), "read", "") == "ok"
    part = created.secret.rpartition("_")[2]
    rows = await house.record.rows("SELECT CAST(k AS text) FROM api_key k WHERE key_id = :k", k=created.key.id)
    assert len(rows) == 1
    assert part not in str(rows[0][0])
    for name in house.stack.pids:
        assert part not in house.stack.log(name, lines=100_000)
