"""Checks of what clients send, with the path of each field that is wrong. Cheap: this is the hot path of a start."""

from __future__ import annotations

import json
import os
import re
import time
from functools import lru_cache

import grpc
import orjson

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from flint_core.sizes import VALUE_DEPTH, too_deep
from flint_rpc.errors import ErrorReason, FieldViolation, Refused, field_invalid
from flint_rpc.names import is_label, is_version, parse_parent

__all__ = [
    "OWN_REQUEST_ID",
    "REQUEST_ID",
    "check_json",
    "make_start",
    "namespace_of_parent",
    "page_token_invalid",
]

OWN_REQUEST_ID = "~"
"""Prefix of request ids that the gateway made itself; clients may not use it."""

REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")
"""What a client may give."""
_LAST_SECOND = 253_402_300_800  # the year 10000
_LONG_NUMBER = re.compile(rb"\d{19}")

_label = lru_cache(4096)(is_label)
_version = lru_cache(4096)(is_version)
namespace_of_parent = lru_cache(4096)(parse_parent)
"""`parse_parent` with its answers kept: the same few parents come with every start."""


def make_start(
    request: runs_pb2.StartRunRequest, namespace: str, trace_id: bytes, payload_bytes: int, prefix: str = ""
) -> scheduling_pb2.Start:
    """The start to accept. Raises `Refused` that names every wrong field, each with `prefix` before its name."""
    violations: list[FieldViolation] = []
    workflow_id = request.workflow_id
    if not _label(workflow_id):
        violations.append(FieldViolation(prefix + "workflow_id", "is required, a DNS label of at most 63 characters"))
    version = request.version
    if version and not _version(version):
        violations.append(FieldViolation(prefix + "version", "must be a semantic version such as 1.0.0, or empty"))
    level = request.level if request.HasField("level") else None  # the definition's
    if level is not None and not 0 <= level <= 9:
        violations.append(FieldViolation(prefix + "level", "must be between 0 (most urgent) and 9"))
    if level is not None and request.level_name:
        violations.append(FieldViolation(prefix + "level_name", "is given beside level: one of them"))
    request_id = request.request_id
    if not request_id:
        # The time first: new ones are neighbours in their index, however many there are, so its pages stay in memory.
        request_id = f"{OWN_REQUEST_ID}{int(time.time() * 1000):012x}{os.urandom(10).hex()}"
    elif not REQUEST_ID.fullmatch(request_id) or request_id[0] == OWN_REQUEST_ID:
        violations.append(
            FieldViolation(prefix + "request_id", "must be 1 to 128 printable ASCII characters, the first not «~»")
        )
    data = request.input or b"{}"
    if len(data) > payload_bytes:
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            ErrorReason.ERROR_REASON_PAYLOAD_TOO_LARGE,
            f"{prefix}input has {len(data)} bytes; the limit is {payload_bytes}",
            field_violations=[*violations, FieldViolation(prefix + "input", f"has more than {payload_bytes} bytes")],
            metadata={"limit_bytes": str(payload_bytes), "bytes": str(len(data))},
        )
    problem = None if data == b"{}" else check_json(data)
    if problem is not None:
        violations.append(FieldViolation(prefix + "input", problem))
    if violations:
        raise field_invalid(*violations)
    start = scheduling_pb2.Start(
        namespace=namespace,
        workflow_id=workflow_id,
        version=version,
        input=data,
        request_id=request_id,
        level=level,
        trace_id=trace_id,
    )
    if any(
        (
            request.level_name,
            request.pool,
            request.region,
            request.fairness_key,
            request.HasField("deadline"),
            request.HasField("not_before"),
        )
    ):
        _add_queueing(start, request, prefix)
    return start


def _add_queueing(start: scheduling_pb2.Start, request: runs_pb2.StartRunRequest, prefix: str) -> None:
    """What a start says of how it queues. Raises `Refused`."""
    violations: list[FieldViolation] = []
    if len(request.level_name) > 63 or "\0" in request.level_name:
        violations.append(FieldViolation(prefix + "level_name", "must have at most 63 characters"))
    for name in ("pool", "region"):
        value = getattr(request, name)
        if value and not _label(value):
            violations.append(FieldViolation(prefix + name, "must be a DNS label of at most 63 characters, or empty"))
    if len(request.fairness_key) > 128 or "\0" in request.fairness_key:
        violations.append(FieldViolation(prefix + "fairness_key", "must have at most 128 characters"))
    violations += [
        FieldViolation(prefix + name, "must be between the years 1970 and 9999")
        for name, moment in (("deadline", request.deadline), ("not_before", request.not_before))
        if not 0 <= moment.seconds < _LAST_SECOND
    ]
    if violations:
        raise field_invalid(*violations)
    start.level_name, start.pool, start.region = request.level_name, request.pool, request.region
    start.fairness_key = request.fairness_key
    start.deadline_ms = request.deadline.ToMilliseconds() if request.HasField("deadline") else 0
    start.not_before_ms = request.not_before.ToMilliseconds() if request.HasField("not_before") else 0


def page_token_invalid() -> Refused:
    """A token of the right list whose cursor is none: it was cut or changed on its way."""
    return Refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID,
        "the page token is damaged",
        field_violations=[FieldViolation("page_token", "begin again without a page token")],
    )


def check_json(data: bytes) -> str | None:
    """What is wrong with a JSON text; None when it is one that Flint keeps exactly.

    NaN, infinities, lone surrogates and integers beyond 64 bits are refused: they would change on their way. So is what
    is nested so deeply that it could not be written again.
    """
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return f"is not JSON: {error}"
    if too_deep(data):
        return f"is nested too deeply: more than {VALUE_DEPTH} levels"
    # orjson reads longer integers as floats, silently; only texts with that many digits in a row need the slow look.
    if _LONG_NUMBER.search(data):
        try:
            json.loads(data, parse_int=_integer)
        except OverflowError as error:
            return str(error)
        except RecursionError:
            return "is nested too deeply"
    return None


def _integer(text: str) -> int:
    # Longer texts than 20 characters cannot fit; int() of a very long one would be slow.
    if len(text) <= 20 and -(2**63) <= (value := int(text)) < 2**64:
        return value
    shown = text if len(text) <= 24 else text[:21] + "…"
    raise OverflowError(f"holds the integer {shown}, which does not fit 64 bits; send it as a string")
