"""Resource names: `namespaces/{namespace}/runs/{run}` and the like. Parsing refuses with the field's name."""

from __future__ import annotations

import re
import uuid
from typing import NamedTuple

from flint_core.ids import parse_run_id
from flint_rpc.errors import field_invalid

__all__ = [
    "ALL_NAMESPACES",
    "ApprovalName",
    "BackfillName",
    "RunName",
    "WorkflowName",
    "format_key",
    "format_run",
    "format_version",
    "format_worker",
    "is_label",
    "is_version",
    "parse_approval",
    "parse_backfill",
    "parse_calendar",
    "parse_key",
    "parse_limit",
    "parse_parent",
    "parse_pool",
    "parse_run",
    "parse_schedule",
    "parse_worker",
    "parse_workflow",
    "parse_workflow_parent",
]

ALL_NAMESPACES = "-"
"""Stands for every namespace in the names of keys."""

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(
    r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)"
    r"(?:-(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
_KEY_ID = re.compile(r"[a-z0-9]{4,32}")
_APPROVAL_KEY = re.compile(r"[0-9]{1,18}")
_INCARNATION = re.compile(r"[0-9a-f]{32}")


class RunName(NamedTuple):
    """A parsed run name. `name` is its canonical form."""

    name: str
    namespace: str
    run_id: bytes


class WorkflowName(NamedTuple):
    """A parsed name of a workflow or one of its versions (`version` is empty for the workflow itself)."""

    namespace: str
    workflow_id: str
    version: str


class ApprovalName(NamedTuple):
    """A parsed name of an approval. `key` names it within its run."""

    namespace: str
    run_id: bytes
    key: str


class BackfillName(NamedTuple):
    """A parsed name of a backfill of a schedule."""

    namespace: str
    schedule_id: str
    backfill_id: bytes


def is_label(text: str) -> bool:
    """Whether text is a DNS label of at most 63 characters."""
    return _LABEL.fullmatch(text) is not None


def parse_limit(text: str, field: str = "name") -> tuple[str, str]:
    """Namespace and id of `namespaces/{namespace}/limits/{limit}`. Raises `Refused`."""
    parts = text.split("/")
    if len(parts) == 4 and parts[::2] == ["namespaces", "limits"] and is_label(parts[1]) and is_label(parts[3]):
        return parts[1], parts[3]
    raise field_invalid((field, _expected(text, "namespaces/{namespace}/limits/{limit}")))


def is_version(text: str) -> bool:
    """Whether text is a semantic version (2.0.0) of at most 64 characters."""
    return len(text) <= 64 and _VERSION.fullmatch(text) is not None


def format_run(namespace: str, run_id: bytes) -> str:
    """`namespaces/{namespace}/runs/{run}` for a run id of 16 bytes."""
    text = run_id.hex()
    return f"namespaces/{namespace}/runs/{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def format_version(namespace: str, workflow_id: str, version: str) -> str:
    """`namespaces/{namespace}/workflows/{workflow}/versions/{version}`."""
    return f"namespaces/{namespace}/workflows/{workflow_id}/versions/{version}"


def format_key(namespace: str, key_id: str) -> str:
    """`namespaces/{namespace}/keys/{key}`."""
    return f"namespaces/{namespace}/keys/{key_id}"


def format_worker(incarnation: str) -> str:
    """`workers/{incarnation}`."""
    return f"workers/{incarnation}"


def parse_parent(text: str, field: str = "parent", *, allow_all: bool = False) -> str:
    """The namespace of `namespaces/{namespace}`; `namespaces/-` only with `allow_all`. Raises `Refused`."""
    parts = text.split("/")
    if len(parts) == 2 and parts[0] == "namespaces" and (is_label(parts[1]) or (allow_all and parts[1] == "-")):
        return parts[1]
    raise field_invalid((field, _expected(text, "namespaces/{namespace}")))


def parse_run(text: str, field: str = "name") -> RunName:
    """`namespaces/{namespace}/runs/{run}`, {run} being a UUID as Flint issues them. Raises `Refused`."""
    parts = text.split("/")
    if len(parts) == 4 and parts[0] == "namespaces" and parts[2] == "runs" and is_label(parts[1]):
        run_id = parse_run_id(parts[3])
        if run_id is not None:
            return RunName(f"namespaces/{parts[1]}/runs/{uuid.UUID(bytes=run_id)}", parts[1], run_id)
    raise field_invalid((field, _expected(text, "namespaces/{namespace}/runs/{run}, {run} being a run's UUID")))


def parse_approval(text: str, field: str = "name") -> ApprovalName:
    """`namespaces/{namespace}/runs/{run}/approvals/{approval}`. Raises `Refused`."""
    parts = text.split("/")
    collections = (parts[0], parts[2], parts[4]) if len(parts) == 6 else ()
    if collections == ("namespaces", "runs", "approvals") and is_label(parts[1]) and _APPROVAL_KEY.fullmatch(parts[5]):
        run_id = parse_run_id(parts[3])
        if run_id is not None:
            return ApprovalName(parts[1], run_id, parts[5])
    raise field_invalid((field, _expected(text, "namespaces/{namespace}/runs/{run}/approvals/{approval}")))


def parse_workflow(text: str, field: str = "name", *, version: bool | None = None) -> WorkflowName:
    """`namespaces/{namespace}/workflows/{workflow}[/versions/{version}]`.

    `version` True demands the version, False forbids it, None takes both. Raises `Refused`.
    """
    parts = text.split("/")
    short = len(parts) == 4 and version is not True
    long = len(parts) == 6 and version is not False and parts[4] == "versions" and is_version(parts[5])
    collections = (parts[0], parts[2]) == ("namespaces", "workflows") if short or long else False
    if collections and is_label(parts[1]) and is_label(parts[3]):
        return WorkflowName(parts[1], parts[3], parts[5] if long else "")
    suffix = {True: "/versions/{version}", False: "", None: "[/versions/{version}]"}[version]
    raise field_invalid((field, _expected(text, "namespaces/{namespace}/workflows/{workflow}" + suffix)))


def parse_workflow_parent(text: str, field: str = "parent") -> WorkflowName:
    """`namespaces/{namespace}` (`workflow_id` is empty then) or `namespaces/{namespace}/workflows/{workflow}`."""
    if text.count("/") == 1:
        return WorkflowName(parse_parent(text, field), "", "")
    return parse_workflow(text, field, version=False)


def parse_schedule(text: str, field: str = "name") -> tuple[str, str]:
    """(namespace, schedule) of `namespaces/{namespace}/schedules/{schedule}`; {schedule} is a label, or
    `workflow.` and a label. Raises `Refused`.
    """
    parts = text.split("/")
    form = len(parts) == 4 and (parts[0], parts[2]) == ("namespaces", "schedules") and is_label(parts[1])
    if form and is_label(parts[3].removeprefix("workflow.")):
        return parts[1], parts[3]
    raise field_invalid((field, _expected(text, "namespaces/{namespace}/schedules/{schedule}")))


def parse_backfill(text: str, field: str = "name") -> BackfillName:
    """`namespaces/{namespace}/schedules/{schedule}/backfills/{backfill}`. Raises `Refused`."""
    schedule, _, backfill = text.partition("/backfills/")
    try:
        backfill_id = uuid.UUID(backfill).bytes if len(backfill) <= 36 else b""
    except ValueError:
        backfill_id = b""
    if backfill_id:
        return BackfillName(*parse_schedule(schedule, field), backfill_id)
    raise field_invalid((field, _expected(text, "namespaces/{namespace}/schedules/{schedule}/backfills/{backfill}")))


def parse_calendar(text: str, field: str = "name") -> tuple[str, str]:
    """(namespace, calendar) of `namespaces/{namespace}/calendars/{calendar}`. Raises `Refused`."""
    parts = text.split("/")
    form = len(parts) == 4 and (parts[0], parts[2]) == ("namespaces", "calendars")
    if form and is_label(parts[1]) and is_label(parts[3]):
        return parts[1], parts[3]
    raise field_invalid((field, _expected(text, "namespaces/{namespace}/calendars/{calendar}")))


def parse_key(text: str, field: str = "name") -> tuple[str, str]:
    """(namespace or `-`, key id) of `namespaces/{namespace}/keys/{key}`. Raises `Refused`."""
    parts = text.split("/")
    form = len(parts) == 4 and parts[0] == "namespaces" and parts[2] == "keys"
    if form and _KEY_ID.fullmatch(parts[3]) and (parts[1] == ALL_NAMESPACES or is_label(parts[1])):
        return parts[1], parts[3]
    raise field_invalid((field, _expected(text, "namespaces/{namespace}/keys/{key}")))


def parse_worker(text: str, field: str = "name") -> str:
    """The incarnation of `workers/{incarnation}`. Raises `Refused`."""
    prefix, _, incarnation = text.partition("/")
    if prefix == "workers" and _INCARNATION.fullmatch(incarnation):
        return incarnation
    raise field_invalid((field, _expected(text, "workers/{incarnation}")))


def parse_pool(text: str, field: str = "name") -> tuple[str, str]:
    """(region, pool) of `regions/{region}/pools/{pool}`. Raises `Refused`."""
    parts = text.split("/")
    if len(parts) == 4 and (parts[0], parts[2]) == ("regions", "pools") and is_label(parts[1]) and is_label(parts[3]):
        return parts[1], parts[3]
    raise field_invalid((field, _expected(text, "regions/{region}/pools/{pool}")))


def _expected(text: str, form: str) -> str:
    if not text:
        return f"is required, as {form}"
    shown = text if len(text) <= 120 else text[:117] + "…"
    return f"«{shown}» is not of the form {form}"
