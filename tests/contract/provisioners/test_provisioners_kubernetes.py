"""The Kubernetes provisioner against a server that behaves as the API does; manifests against the published schemas."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flint_ops.config import FleetSettings, Settings
from flint_ops.config.settings import KubernetesSettings
from flint_registry.provisioners import Order, Provisioned, ProvisionerRefused, ProvisionerUnavailable
from flint_registry.provisioners.kubernetes import KubernetesProvisioner
from flint_registry.provisioners.pods import read_template, worker_pod
from support.eventually import eventually
from support.kubernetes_api import FakeKubernetes, fake_kubernetes

DEPLOY = Path(__file__).parents[3] / "deploy" / "kubernetes"
TEMPLATE = DEPLOY / "worker-pod.yaml"
WITHIN_S = 60.0


def order(name: str, pool: str = "default", slots: int = 0) -> Order:
    return Order(name, pool, "local", slots)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeKubernetes]:
    async with fake_kubernetes() as fake:
        yield fake


@pytest.fixture
async def provisioner(cluster: FakeKubernetes, tmp_path: Path) -> AsyncIterator[KubernetesProvisioner]:
    made = KubernetesProvisioner(
        KubernetesSettings(
            kubeconfig=str(cluster.kubeconfig(tmp_path)), template=str(TEMPLATE), request_timeout_s=WITHIN_S
        )
    )
    yield made
    await made.close()


async def test_workers_are_pods_that_run_once_with_ids_of_their_own(
    cluster: FakeKubernetes, provisioner: KubernetesProvisioner
) -> None:
    await provisioner.start([order("default-1", slots=8), order("gpu-1", "gpu")])
    first = next(body for body in cluster.bodies if body["metadata"]["name"] == "default-1")
    environment = {entry["name"]: entry.get("value") for entry in first["spec"]["containers"][0]["env"]}
    assert first["spec"]["restartPolicy"] == "Never"
    assert environment["FLINT_WORKER__ID"] == "default-1" and environment["FLINT_WORKER__SLOTS"] == "8"
    assert environment["FLINT_WORKER__OPS_LISTEN"] == "0.0.0.0:7485"  # what the template says stays
    assert {(worker.worker_id, worker.pool, worker.ended) for worker in await provisioner.list()} == {
        ("default-1", "default", False),
        ("gpu-1", "gpu", False),
    }
    await provisioner.start([order("default-1")])  # repeated: it exists already (409)
    assert len(cluster.pods) == 2


async def test_throttling_and_errors_of_the_moment_are_waited_out(
    cluster: FakeKubernetes, provisioner: KubernetesProvisioner
) -> None:
    cluster.fail("POST", 429, 500, Retry_After="0.1")
    await provisioner.start([order("default-1")])
    assert cluster.requests["POST"] == 3 and "default-1" in cluster.pods
    cluster.fail("DELETE", 503)
    await provisioner.end(["default-1", "nobody"])
    assert "deletionTimestamp" in cluster.pods["default-1"]["metadata"]
    cluster.fail("POST", *[429] * 4, Retry_After="3600")
    with pytest.raises(ProvisionerUnavailable) as unavailable:
        await provisioner.start([order("default-2")])
    assert unavailable.value.retry_after_s >= 3600 and cluster.requests["POST"] == 4, "it was asked to wait, and waits"


async def test_what_is_refused_is_not_asked_again(
    cluster: FakeKubernetes, provisioner: KubernetesProvisioner, tmp_path: Path
) -> None:
    cluster.fail("POST", 403)
    with pytest.raises(ProvisionerRefused, match="403"):
        await provisioner.start([order("default-1")])
    assert cluster.requests["POST"] == 1
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("kind: Pod\nspec: {containers: [{name: other}]}\n")
    settings = KubernetesSettings(kubeconfig=str(cluster.kubeconfig(tmp_path)), template=str(wrong))
    with pytest.raises(ProvisionerRefused, match="no container named worker"):
        await KubernetesProvisioner(settings).start([order("default-1")])


async def test_ends_are_told_of_terminated_containers_only_and_survive_broken_watches(
    cluster: FakeKubernetes, provisioner: KubernetesProvisioner
) -> None:
    names = [f"default-{number}" for number in range(5)]
    await provisioner.start([order(name) for name in names])
    cluster.finish(names[0], 0)  # before anybody watches
    told: dict[str, Provisioned] = {}

    async def follow() -> None:
        async for worker in provisioner.watch():
            told[worker.worker_id] = worker

    following = asyncio.create_task(follow())
    try:
        await eventually(lambda: names[0] in told and cluster.watching, WITHIN_S)
        cluster.finish(names[1], 137)
        await eventually(lambda: names[1] in told, WITHIN_S)
        assert told[names[1]].failed and told[names[1]].ended_ms > 1
        cluster.vanish(names[2])  # by force: nobody saw its process end
        cluster.break_watches()
        cluster.finish(names[3], 0)
        await eventually(lambda: names[3] in told and cluster.watching, WITHIN_S)
        cluster.break_watches(forget=True)  # 410: it begins with a list
        cluster.finish(names[4], 0)
        await eventually(lambda: names[4] in told, WITHIN_S)
        assert names[2] not in told
        assert names[2] not in {worker.worker_id for worker in await provisioner.list()}
        await provisioner.end(told)
        await eventually(lambda: not cluster.pods, WITHIN_S)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_an_image_that_is_not_there_is_a_failed_start(
    cluster: FakeKubernetes, provisioner: KubernetesProvisioner
) -> None:
    await provisioner.start([order("default-1")])
    cluster.set_status("default-1", {"waiting": {"reason": "ImagePullBackOff"}}, "Pending")
    fresh = KubernetesProvisioner(provisioner._settings)
    (worker,) = await fresh.list()
    assert worker.failed and not worker.ended and worker.detail == "ImagePullBackOff"
    await fresh.close()


def manifests() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path in sorted(DEPLOY.glob("*.yaml")):
        found.extend((f"{path.name}:{d['kind']}", d) for d in YAML(typ="safe").load_all(path.read_text()) if d)
    made = worker_pod(read_template(TEMPLATE), order("default-1", slots=8), "flint")
    return [*found, ("made by the provisioner", made)]


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_manifests_hold_to_the_published_schemas(version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, about how it reads its data
        import kubernetes_validate

        for name, document in manifests():
            assert kubernetes_validate.validate(document, version, strict=True) == version, name


def test_the_registrys_manifest_sets_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = next(document for name, document in manifests() if name == "registry.yaml:Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    for entry in container["env"]:
        section, *path = entry["name"].removeprefix("FLINT_").lower().split("__")
        known: Any = Settings.model_fields[section].annotation
        for part in path:
            known = known.model_fields[part].annotation
    assert FleetSettings().kubernetes.namespace == deployment["metadata"]["namespace"]
