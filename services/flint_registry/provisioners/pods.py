"""Pods of workers: made from a template, read back. Pure but for reading the template's file."""

from __future__ import annotations

import copy
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flint_registry.provisioners.base import Order, Provisioned

__all__ = ["MANAGED", "SELECTOR", "TemplateInvalid", "provisioned", "read_template", "worker_pod"]

_PREFIX: Final = "flint.dev/"
MANAGED: Final = "flint-autoscaler"
SELECTOR: Final = f"app.kubernetes.io/managed-by={MANAGED}"
_POOL: Final = f"{_PREFIX}pool"
_REGION: Final = f"{_PREFIX}region"
_CONTAINER: Final = "worker"
_MOST_TEXT: Final = 300
# A pod that cannot begin because of these will not begin by waiting.
_HOPELESS: Final = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError"}
)


class TemplateInvalid(Exception):
    """The template is no pod with a container named worker; the message says what is wrong."""


def read_template(path: Path) -> dict[str, Any]:
    """The pod in a YAML file. Raises TemplateInvalid."""
    try:
        pod = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise TemplateInvalid(f"{path}: {error}") from None
    if not isinstance(pod, dict) or pod.get("kind") != "Pod" or not isinstance(pod.get("spec"), dict):
        raise TemplateInvalid(f"{path}: is no Pod with a spec")
    containers = pod["spec"].get("containers")
    if not isinstance(containers, list) or not any(
        isinstance(container, dict) and container.get("name") == _CONTAINER for container in containers
    ):
        raise TemplateInvalid(f"{path}: has no container named {_CONTAINER}")
    return pod


def worker_pod(template: dict[str, Any], order: Order, namespace: str) -> dict[str, Any]:
    """The pod of one worker. It runs once: a worker that ends is replaced by another one with another id."""
    pod = copy.deepcopy(template)
    metadata = pod.setdefault("metadata", {})
    metadata.pop("generateName", None)
    metadata.update(name=order.worker_id, namespace=namespace)
    metadata.setdefault("labels", {}).update(
        {
            "app.kubernetes.io/managed-by": MANAGED,
            "app.kubernetes.io/component": "worker",
            _POOL: order.pool,
            _REGION: order.region,
        }
    )
    # The cluster's own scaling of nodes must not take a worker away that has work; it ends by itself when it is idle.
    metadata.setdefault("annotations", {}).setdefault("cluster-autoscaler.kubernetes.io/safe-to-evict", "false")
    pod["spec"]["restartPolicy"] = "Never"
    settings = {
        "FLINT_WORKER__ID": order.worker_id,
        "FLINT_WORKER__POOL": order.pool,
        "FLINT_WORKER__REGION": order.region,
        **({"FLINT_WORKER__SLOTS": str(order.slots)} if order.slots else {}),
    }
    for container in pod["spec"]["containers"]:
        if container.get("name") == _CONTAINER:
            kept = [entry for entry in container.get("env") or () if entry.get("name") not in settings]
            container["env"] = [*kept, *({"name": name, "value": value} for name, value in settings.items())]
    return pod


def provisioned(pod: dict[str, Any]) -> Provisioned | None:
    """A worker as its pod tells; None for a pod that is none of ours.

    It has ended when its container was seen terminated. That a pod is gone says nothing: one that is removed by force,
    or with its node, may have a process that still runs. Those leases run out by themselves.
    """
    metadata = pod.get("metadata") or {}
    labels = metadata.get("labels") or {}
    if labels.get("app.kubernetes.io/managed-by") != MANAGED or not metadata.get("name"):
        return None
    status = pod.get("status") or {}
    state: dict[str, Any] = {}
    for container in status.get("containerStatuses") or ():
        if container.get("name") == _CONTAINER:
            state = container.get("state") or {}
    terminated = state.get("terminated") or {}
    waiting = (state.get("waiting") or {}).get("reason", "")
    ended_ms = _milliseconds(terminated.get("finishedAt")) or (1 if terminated else 0)
    failed, detail = False, ""
    if terminated:
        code = terminated.get("exitCode", 0)
        failed = code != 0
        detail = f"exit code {code} {terminated.get('reason', '')}".strip()
    elif waiting in _HOPELESS or status.get("phase") == "Failed":
        failed, detail = True, waiting or str(status.get("reason") or status.get("message") or "failed")
    return Provisioned(
        worker_id=metadata["name"],
        pool=labels.get(_POOL, ""),
        region=labels.get(_REGION, ""),
        started_ms=_milliseconds(metadata.get("creationTimestamp")),
        ended_ms=ended_ms,
        failed=failed,
        detail=detail[:_MOST_TEXT],
    )


def _milliseconds(moment: Any) -> int:
    if not isinstance(moment, str):
        return 0
    try:
        return int(datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp() * 1000)
    except ValueError:
        return 0
