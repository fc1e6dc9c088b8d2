"""The embedded servers as real processes: they come back when killed, keep their data, and guard their doors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import nats
import orjson
import psutil
import psycopg
import pytest
from pydantic import SecretStr

from flint_stack.check_servers import check_nats
from flint_stack.doctor import diagnose
from flint_stack.errors import ProbeFailed
from flint_stack.findings import Verdict
from flint_stack.probes import http_get
from flint_stack.processes import processes_inside
from flint_stack.servers.nats import PERMISSIONS
from support.stack import RunningStack, eventually, running, running_stack


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[RunningStack]:
    async with running_stack(tmp_path, servers_only=True) as stack:
        yield stack


async def write_row(stack: RunningStack, number: int) -> None:
    async with await psycopg.AsyncConnection.connect(stack.settings.postgres.dsn.get_secret_value()) as connection:
        await connection.execute("create table if not exists kept (number int primary key)")
        await connection.execute("insert into kept values (%s)", (number,))


async def rows(stack: RunningStack) -> list[int]:
    async with await psycopg.AsyncConnection.connect(stack.settings.postgres.dsn.get_secret_value()) as connection:
        cursor = await connection.execute("select number from kept order by number")
        return [int(row[0]) for row in await cursor.fetchall()]


async def connect_nats(stack: RunningStack, role: str, errors: list[Exception] | None = None) -> nats.NATS:
    async def on_error(error: Exception) -> None:
        if errors is not None:
            errors.append(error)

    password = stack.stack.layout.load_secrets().nats_password(role)
    return await nats.connect(
        stack.settings.nats.urls[0], user=role, password=password, error_cb=on_error, allow_reconnect=False
    )


async def etcd(stack: RunningStack, path: str, body: dict[str, str]) -> dict[str, object]:
    async with httpx.AsyncClient(timeout=5) as client:
        answer = await client.post(f"http://{stack.settings.etcd.endpoints[0]}/v3/{path}", json=body)
        answer.raise_for_status()
        return dict(answer.json())


async def test_each_killed_server_is_started_again_and_keeps_its_data(servers: RunningStack) -> None:
    await write_row(servers, 1)
    await etcd(servers, "kv/put", {"key": "a2V5", "value": "dmFsdWU="})
    client = await connect_nats(servers, "operator")
    await client.jetstream().add_stream(name="KEPT", subjects=["flint.kept"])
    await client.jetstream().publish("flint.kept", b"entry", timeout=5)
    await client.close()
    for name in ("postgres", "nats", "etcd"):
        killed = await servers.kill(name)
        assert not running(killed)
        await servers.ready(name)
        assert servers.pid(name) != killed.pid
        assert servers.restarts(name) >= 1
    assert await rows(servers) == [1]
    found = await etcd(servers, "kv/range", {"key": "a2V5"})
    assert found["count"] == "1"
    client = await connect_nats(servers, "operator")
    assert (await client.jetstream().stream_info("KEPT")).state.messages == 1
    await client.close()


async def test_backends_of_a_killed_postmaster_are_ended_before_the_restart(servers: RunningStack) -> None:
    async with await psycopg.AsyncConnection.connect(servers.settings.postgres.dsn.get_secret_value()) as busy:
        sleeping = asyncio.create_task(busy.execute("select pg_sleep(600)"))
        cluster = servers.stack.layout.postgres_dir / "data"
        before = set(await eventually(lambda: processes_inside(cluster, "postgres")))
        await servers.kill("postgres")
        await servers.ready("postgres")
        with pytest.raises(psycopg.OperationalError):
            await sleeping
    assert not any(running(identity) for identity in before)


async def test_a_held_server_stays_down_until_it_is_started(servers: RunningStack) -> None:
    await servers.kill("etcd", hold=True)
    assert "etcd" not in servers.pids
    await servers.start("etcd")
    assert (await etcd(servers, "kv/range", {"key": "a2V5"})).get("kvs") is None


async def test_a_paused_server_answers_again_when_resumed(servers: RunningStack) -> None:
    monitor = servers.addresses["nats/ops"]
    servers.pause("nats")
    await eventually(lambda: psutil.Process(servers.pid("nats")).status() == psutil.STATUS_STOPPED)
    with pytest.raises(ProbeFailed, match="no answer"):
        await http_get(monitor, "/healthz", timeout_s=0.5)
    servers.resume("nats")
    assert (await http_get(monitor, "/healthz", timeout_s=30))[0] == 200


async def test_postgres_demands_the_password_and_keeps_durability_on(servers: RunningStack) -> None:
    dsn = servers.settings.postgres.dsn.get_secret_value()
    password = servers.stack.layout.load_secrets().postgres
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        await psycopg.AsyncConnection.connect(dsn.replace(password, "wrong"))
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute(
            "select current_setting('fsync'), current_setting('synchronous_commit'),"
            " current_setting('password_encryption'), rolsuper from pg_roles where rolname = current_user"
        )
        assert await cursor.fetchone() == ("on", "on", "scram-sha-256", False)


async def test_nats_is_told_how_much_memory_it_should_stay_below(servers: RunningStack) -> None:
    _, body = await http_get(servers.addresses["nats/ops"], "/varz")
    assert orjson.loads(body)["gomemlimit"] == servers.settings.nats.memory_bytes


async def test_nats_refuses_strangers_and_wrong_passwords(servers: RunningStack) -> None:
    for user, password in (("", ""), ("worker", "wrong")):
        nats_settings = servers.settings.nats.model_copy(update={"user": user, "password": SecretStr(password)})
        (finding,) = await check_nats(servers.settings.model_copy(update={"nats": nats_settings}))
        assert finding.verdict is Verdict.FAILED
        assert "Authorization Violation" in finding.detail


FORBIDDEN = [
    ("worker", "$JS.API.STREAM.DELETE.FLINT_JOBS"),
    ("worker", "$JS.API.STREAM.CREATE.MINE"),
    ("worker", "flint.owners"),
    ("worker", "flint.jobs.local.default.abc"),
    ("gateway", "flint.journal.1.0.abc"),
    ("gateway", "$JS.API.INFO"),
    ("registry", "flint.control.abc"),
    ("registry", "$JS.API.INFO"),
    ("scheduler", "$SYS.REQ.SERVER.PING"),
]


async def test_each_role_is_refused_what_its_work_does_not_need(servers: RunningStack) -> None:
    for role, forbidden in FORBIDDEN:
        errors: list[Exception] = []
        client = await connect_nats(servers, role, errors)
        await client.publish(forbidden, b"")
        await client.flush(5)
        refusal = await eventually(lambda errors=errors: errors)
        assert "permissions violation" in str(refusal[0]).lower(), (role, forbidden)
        await client.close()


async def test_roles_reach_each_other_on_their_subjects(servers: RunningStack) -> None:
    clients = {role: await connect_nats(servers, role) for role in PERMISSIONS}
    for sender, subject, receiver in (
        ("gateway", "flint.owner.3", "scheduler"),
        ("scheduler", "flint.watchers.abc", "gateway"),
        ("scheduler", "flint.owners", "gateway"),
        ("scheduler", "flint.resets", "gateway"),
        ("scheduler", "flint.control.abc", "worker"),
        ("worker", "flint.hints.run", "gateway"),
        ("registry", "flint.fleet.beats", "scheduler"),
        ("registry", "flint.fleet.beats", "registry"),
    ):
        subscription = await clients[receiver].subscribe(subject)
        await clients[receiver].flush(5)
        assert await _heard(clients[sender], subject, subscription) == b"heard"
    definitions = await clients["scheduler"].subscribe("flint.definitions.*", cb=_answer)
    await clients["scheduler"].flush(5)
    assert (await clients["worker"].request("flint.definitions.abc", b"", timeout=5)).data == b"definition"
    await definitions.unsubscribe()
    for client in clients.values():
        await client.close()


async def _heard(sender: nats.aio.client.Client, subject: str, subscription: Any) -> bytes:
    """What comes of a word that is said until it is heard: NATS delivers at most once."""
    async with asyncio.timeout(60):
        while True:
            await sender.publish(subject, b"heard")
            with contextlib.suppress(nats.errors.TimeoutError):
                data: bytes = (await subscription.next_msg(2)).data
                return data


async def _answer(message: nats.aio.msg.Msg) -> None:
    await message.respond(b"definition")


async def test_files_are_for_the_user_alone(servers: RunningStack) -> None:
    layout = servers.stack.layout
    assert layout.root.stat().st_mode & 0o777 == 0o700
    for path in (layout.config_file, layout.admin_key_file, layout.secrets_file, layout.nats_dir / "nats.json"):
        assert path.stat().st_mode & 0o777 == 0o600, path


async def test_the_doctor_tells_servers_that_are_well_from_services_that_are_missing(servers: RunningStack) -> None:
    diagnosis = await diagnose(servers.data_dir)
    verdicts = {finding.part.split()[0]: finding for finding in diagnosis.findings}
    assert verdicts["NATS"].verdict is Verdict.OK, verdicts["NATS"]
    assert verdicts["etcd"].verdict is Verdict.OK, verdicts["etcd"]
    assert verdicts["supervisor"].verdict is Verdict.OK, verdicts["supervisor"]
    assert verdicts["PostgreSQL"].verdict is Verdict.FAILED
    assert "without Flint's schema" in verdicts["PostgreSQL"].detail
    assert verdicts["gateway"].detail == "nothing listens there"
    assert not diagnosis.healthy
    await servers.stop("nats")
    silent = {finding.part.split()[0]: finding for finding in (await diagnose(servers.data_dir)).findings}
    assert silent["NATS"].verdict is Verdict.FAILED


async def test_stopping_a_stopped_process_still_ends_it(tmp_path: Path) -> None:
    async with running_stack(tmp_path, servers_only=True) as stack:
        identities = [stack.stack.supervisor.identity(name) for name in ("postgres", "nats", "etcd")]
        for name in ("postgres", "nats", "etcd"):
            stack.pause(name)
    assert not any(running(identity) for identity in identities)
