"""Arguments and connections, checked before anything is done with them.

An argument may hold a secret, so no message here repeats one.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import jsonschema_rs

from flint_core.functions import FUNCTIONS
from flint_core.problems import Problem, ProblemType
from flint_ops.config import ConnectionSettings, Settings
from flint_worker.executors import ExecutionFailed, ResolvedCall

__all__ = ["check_arguments", "failure", "has_controls", "named_connection"]

_VALIDATORS: Final = {
    name: jsonschema_rs.validator_for(spec.resolved, mask="the value") for name, spec in FUNCTIONS.items()
}


def failure(
    call: ResolvedCall, type_: str, status: int, title: str, detail: str = "", retry_after_ms: int | None = None
) -> ExecutionFailed:
    """The exception for a problem of this call's step."""
    return ExecutionFailed(Problem(type_, status, title, detail, call.step), retry_after_ms)


def check_arguments(call: ResolvedCall) -> dict[str, Any]:
    """The call's arguments, which fit the function's schema. Raises ExecutionFailed (validation)."""
    for error in _VALIDATORS[call.function].iter_errors(call.arguments):
        place = "".join(f"/{step}" for step in error.instance_path) or "/"
        raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", f"{place}: {error.message[:300]}")
    return call.arguments


def named_connection(settings: Settings, call: ResolvedCall, kind: Literal["sql", "smtp"]) -> ConnectionSettings:
    """The connection that the call names. Raises ExecutionFailed (configuration)."""
    name = call.arguments["connection"]
    connection = settings.connections.get(name)
    if connection is None:
        detail = f"there is no connection {name!r}: this worker's configuration has no section connections.{name}"
    elif connection.kind != kind:
        detail = f"connections.{name} is of kind {connection.kind}, {call.function} needs {kind}"
    else:
        return connection
    raise failure(call, ProblemType.CONFIGURATION, 400, "No such connection", detail)


def has_controls(text: str) -> bool:
    """Whether a text holds line breaks or other control characters, which could end a header early."""
    return any(ord(character) < 32 or ord(character) == 127 for character in text)
