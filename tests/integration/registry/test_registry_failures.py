"""Registries through the loss of a leader, of etcd and of etcd's store; as processes, through kill -9 and SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from flint_contracts.gen.flint.fleet.v1.fleet_pb2 import Worker
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_coord import Coord, keys
from flint_ops.config import Settings
from flint_rpc.errors import Refused
from flint_store import fleet
from flint_store.engine import create_engine
from support.etcd_server import free_ports
from support.registry_client import RegistryClient


def beat_of(card: registry_pb2.WorkerCard, **fields: Any) -> registry_pb2.Beat:
    return registry_pb2.Beat(incarnation=card.incarnation, lease_id=card.lease_id, **fields)


async def test_a_worker_lost_while_nobody_led_is_recorded_by_the_next_leader(
    start: Any, coord: Coord, eventually: Any
) -> None:
    first = start("registry-1", lease_ttl_s=60)
    card = await first.client.register()
    departing = await first.client.register("departing")
    await first.client.deregister(departing)

    async def recorded() -> bool:
        # As ended, so by the history: what a leader recorded before is there, too.
        worker = (await first.client.workers(ended=True)).get(departing.incarnation)
        return worker is not None and worker.state == Worker.STATE_ENDED

    await eventually(recorded)
    await first.stop()
    assert await coord.get(keys.REGISTRY_LEADER) is None
    await coord.revoke(card.lease_id)
    second = start("registry-2")

    async def lost() -> bool:
        try:
            workers = await second.client.workers(ended=True)
        except Refused:
            return False
        return card.incarnation in workers and workers[card.incarnation].state == Worker.STATE_LOST

    await eventually(lost)
    assert (await second.client.workers(ended=True))[departing.incarnation].state == Worker.STATE_ENDED


async def test_a_resigned_leader_is_followed_by_the_other(start: Any, coord: Coord, eventually: Any) -> None:
    registries = {name: start(name) for name in ("registry-1", "registry-2")}

    async def led() -> bool:
        return await coord.get(keys.REGISTRY_LEADER) is not None

    await eventually(led)
    item = await coord.get(keys.REGISTRY_LEADER)
    assert item is not None
    leader = item.value.decode()
    (other,) = registries.keys() - {leader}
    await registries[leader].stop()

    async def followed() -> bool:
        item = await coord.get(keys.REGISTRY_LEADER)
        return item is not None and item.value.decode() == other

    await eventually(followed)


async def test_without_etcd_calls_are_refused_with_a_hint_and_leases_live_on(
    start: Any, etcd: Any, eventually: Any
) -> None:
    first = start("registry-1", lease_ttl_s=60)
    card = await first.client.register()
    etcd.kill()
    for request in (first.client.beat(beat_of(card)), first.client.register("another")):
        with pytest.raises(Refused) as refused:
            await request
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        assert refused.value.reason_name == "COMPONENT_UNAVAILABLE"
        assert refused.value.retry_after_s is not None

    async def unready() -> bool:
        return "etcd" in first.lifecycle.readiness.failing()

    await eventually(unready)
    etcd.start()

    async def renewed() -> bool:
        try:
            return await first.client.beat(beat_of(card)) == [(True, False)]  # type: ignore[no-any-return]
        except Refused:
            return False

    await eventually(renewed)

    async def ready() -> bool:
        return not {"etcd", "nats"} & first.lifecycle.readiness.failing().keys()

    await eventually(ready)


async def test_after_a_wipe_of_etcd_workers_register_anew(
    start: Any, etcd: Any, settings: Settings, eventually: Any
) -> None:
    first = start("registry-1", lease_ttl_s=60)
    card = await first.client.register()

    engine = create_engine(settings.postgres, "reading", pool_size=1)

    async def recorded() -> bool:
        assert await first.client.beat(beat_of(card)) == [(True, False)]
        return card.incarnation in {row.incarnation for row in await fleet.live(engine)}

    await eventually(recorded)
    await engine.dispose()
    etcd.wipe()
    etcd.start()

    async def ended() -> bool:
        try:
            return await first.client.beat(beat_of(card)) == [(False, False)]  # type: ignore[no-any-return]
        except Refused:
            return False

    await eventually(ended)
    again = await first.client.register()
    assert await first.client.beat(beat_of(again)) == [(True, False)]

    async def lost() -> bool:
        workers = await first.client.workers(ended=True)
        states = {name: worker.state for name, worker in workers.items()}
        return states == {card.incarnation: Worker.STATE_LOST, again.incarnation: Worker.STATE_READY}

    await eventually(lost)


class RegistryProcess:
    """`python -m flint_registry`."""

    def __init__(self, name: str, settings: Settings, folder: Path) -> None:
        self.name = name
        listen, self.ops = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.client = RegistryClient(listen)
        values = {
            "cluster.name": settings.cluster.name,
            "cluster.internal_token": settings.cluster.internal_token.get_secret_value(),
            "postgres.dsn": settings.postgres.dsn.get_secret_value(),
            "nats.urls": str(settings.nats.urls).replace("'", '"'),
            "etcd.endpoints": str(settings.etcd.endpoints).replace("'", '"'),
            "etcd.lease_ttl_s": "2",
            "registry.id": name,
            "registry.listen": listen,
            "registry.ops_listen": self.ops,
            "registry.lease_ttl_s": "30",
        }
        flags = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flint_registry", *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
            )

    def end(self, number: int) -> int:
        """Sends a signal and waits: the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@pytest.fixture
async def processes(settings: Settings, tmp_path: Path) -> AsyncIterator[dict[str, RegistryProcess]]:
    made = {name: RegistryProcess(name, settings, tmp_path) for name in ("registry-1", "registry-2")}
    yield made
    for each in made.values():
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
        assert each.process.stdout is not None
        each.process.stdout.close()
        await each.client.close()


async def test_a_killed_leader_is_followed_and_its_workers_renew_elsewhere(
    processes: dict[str, RegistryProcess], coord: Coord, eventually: Any
) -> None:
    async def led() -> bool:
        return await coord.get(keys.REGISTRY_LEADER) is not None

    await eventually(led)
    item = await coord.get(keys.REGISTRY_LEADER)
    assert item is not None
    victim = processes[item.value.decode()]
    (heir,) = (each for each in processes.values() if each is not victim)
    card = await victim.client.register()
    assert await asyncio.to_thread(victim.end, signal.SIGKILL) == -signal.SIGKILL
    assert await heir.client.beat(beat_of(card)) == [(True, False)]

    async def followed() -> bool:
        item = await coord.get(keys.REGISTRY_LEADER)
        return item is not None and item.value.decode() == heir.name

    await eventually(followed)
    await heir.client.deregister(card)

    async def recorded() -> bool:
        worker = (await heir.client.workers(ended=True)).get(card.incarnation)
        return worker is not None and worker.state == Worker.STATE_ENDED

    await eventually(recorded)
    assert await asyncio.to_thread(heir.end, signal.SIGTERM) == 0, heir.log.read_text()
    assert await coord.get(keys.REGISTRY_LEADER) is None
    assert heir.process.stdout is not None
    assert heir.process.stdout.read() == b""
