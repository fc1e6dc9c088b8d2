"""Resource names, from what callers write: a bare id or the full name."""

from __future__ import annotations

from flint_sdk._errors import FieldViolation, InvalidArgument


def run_name(namespace: str, run: str) -> str:
    """namespaces/{namespace}/runs/{run}, from a run's id or name."""
    return run if "/" in run else f"namespaces/{namespace}/runs/{_required(run, 'run')}"


def workflow_name(namespace: str, workflow: str, version: str | None = None) -> str:
    """namespaces/{namespace}/workflows/{workflow}[/versions/{version}], from an id or a name."""
    name = workflow if "/" in workflow else f"namespaces/{namespace}/workflows/{_required(workflow, 'workflow')}"
    return name if version is None else f"{name}/versions/{_required(version, 'version')}"


def worker_name(worker: str) -> str:
    """workers/{incarnation}, from an incarnation or a name."""
    return worker if "/" in worker else f"workers/{_required(worker, 'worker')}"


def key_name(namespace: str, key: str) -> str:
    """namespaces/{namespace}/keys/{key}, from a key's id or name."""
    return key if "/" in key else f"namespaces/{namespace}/keys/{_required(key, 'key')}"


def _required(value: str, field: str) -> str:
    if not value:
        raise InvalidArgument(f"{field} is empty", violations=[FieldViolation(field, "must not be empty")])
    return value
