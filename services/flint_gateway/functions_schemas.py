"""What a function worker declares, checked; and the validators of its schemas.

A schema comes from a client: it may not reach out for other documents, and its patterns run on an engine that takes
linear time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jsonschema_rs
import orjson

from flint_contracts.gen.flint.functions.v1 import functions_pb2
from flint_core.functions.function import is_function_name, is_function_version
from flint_core.schema_bounds import check_bounds
from flint_rpc.errors import FieldViolation, field_invalid

__all__ = ["Declared", "SchemaRefused", "check_declarations", "compile_schema", "first_fault"]

MOST_FUNCTIONS: Final = 200
_SCHEMA_BYTES: Final = 65_536
_DESCRIPTION: Final = 1_000
_DEFAULT_TIMEOUT_MS: Final = 30_000
_LEAST_TIMEOUT_MS: Final = 1_000
_MOST_TIMEOUT_MS: Final = 3_600_000
_MESSAGE: Final = 300


class SchemaRefused(ValueError):
    """The bytes are no JSON Schema that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Declared:
    """One function of one function worker."""

    declaration: functions_pb2.FunctionDeclaration
    heartbeat_timeout_ms: int
    input: jsonschema_rs.Validator | None
    output: jsonschema_rs.Validator | None


def check_declarations(
    declarations: Sequence[functions_pb2.FunctionDeclaration],
) -> dict[tuple[str, str], Declared]:
    """The functions by (name, version). Raises `Refused` with every fault's field."""
    faults: list[FieldViolation] = []
    if not 1 <= len(declarations) <= MOST_FUNCTIONS:
        faults.append(FieldViolation("hello.functions", f"must hold 1 to {MOST_FUNCTIONS}"))
    found: dict[tuple[str, str], Declared] = {}
    for place, declaration in enumerate(declarations[:MOST_FUNCTIONS]):
        field = f"hello.functions[{place}]"
        if not is_function_name(declaration.name):
            faults.append(FieldViolation(f"{field}.name", "must be a name such as myteam/resize"))
        if not is_function_version(declaration.version):
            faults.append(FieldViolation(f"{field}.version", "must be a semantic version such as 1.2.0"))
        if len(declaration.description) > _DESCRIPTION:
            faults.append(FieldViolation(f"{field}.description", f"has more than {_DESCRIPTION} characters"))
        timeout_ms = _DEFAULT_TIMEOUT_MS
        if declaration.HasField("heartbeat_timeout"):
            timeout_ms = declaration.heartbeat_timeout.ToMilliseconds()
        if not _LEAST_TIMEOUT_MS <= timeout_ms <= _MOST_TIMEOUT_MS:
            faults.append(FieldViolation(f"{field}.heartbeat_timeout", "must be 1 s to 1 h"))
        validators: dict[str, jsonschema_rs.Validator | None] = {}
        for part in ("input_schema", "output_schema"):
            try:
                validators[part] = compile_schema(getattr(declaration, part))
            except SchemaRefused as error:
                faults.append(FieldViolation(f"{field}.{part}", str(error)))
        key = (declaration.name, declaration.version)
        if key in found:
            faults.append(FieldViolation(field, f"{declaration.name}:{declaration.version} is declared twice"))
        found[key] = Declared(declaration, timeout_ms, validators.get("input_schema"), validators.get("output_schema"))
    if faults:
        raise field_invalid(*faults)
    return found


def compile_schema(schema: bytes) -> jsonschema_rs.Validator | None:
    """The validator of a JSON Schema; None for an empty text. Raises `SchemaRefused`."""
    if not schema:
        return None
    if len(schema) > _SCHEMA_BYTES:
        raise SchemaRefused(f"has more than {_SCHEMA_BYTES} bytes")
    try:
        document = orjson.loads(schema)
    except orjson.JSONDecodeError as error:
        raise SchemaRefused(f"is not JSON: {error}") from None
    try:
        check_bounds(document)
        return jsonschema_rs.validator_for(
            document,
            retriever=_no_documents,
            pattern_options=jsonschema_rs.RegexOptions(),
            mask="the value",  # a message may not repeat what may be a secret
        )
    except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        raise SchemaRefused(f"is not a JSON Schema: {_brief(error)}") from None


def first_fault(validator: jsonschema_rs.Validator | None, value: Any) -> str:
    """Where and how a value does not fit; empty when it does."""
    if validator is None:
        return ""
    for error in validator.iter_errors(value):
        place = "".join(f"/{step}" for step in error.instance_path) or "/"
        return f"{place}: {error.message[:_MESSAGE]}"
    return ""


def _no_documents(uri: str) -> Any:
    raise ValueError("references to other documents are not followed")


def _brief(error: Exception) -> str:
    text = getattr(error, "message", "") or str(error)
    return str(text).splitlines()[0][:_MESSAGE]
