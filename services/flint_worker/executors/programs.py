"""What the executors that run programs share: arguments as texts, environment, results, and what went wrong."""

from __future__ import annotations

import signal
from typing import Any, Final

import orjson

from flint_core.problems import ProblemType
from flint_ops.config import LimitSettings, ScriptSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.arguments import failure
from flint_worker.processes import EndedBy, Ending, ProgramLimits

__all__ = ["environment_of", "limits_of", "result_of", "stdin_of", "text_of", "words_of"]

_TAIL: Final = 2_000
"""Characters of standard error that a problem quotes, from the end."""


def text_of(value: Any) -> str:
    """A value as one word: a string as it is, null as nothing, anything else as JSON. Raises ValueError for NUL."""
    text = value if isinstance(value, str) else "" if value is None else orjson.dumps(value).decode()
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


def words_of(call: ResolvedCall) -> list[str]:
    """The argument list, or the map as `key=value` (`key` where the value is null). Raises ExecutionFailed."""
    arguments = call.arguments.get("arguments", [])
    try:
        if isinstance(arguments, list):
            return [text_of(value) for value in arguments]
        return [
            text_of(key) if value is None else f"{text_of(key)}={text_of(value)}" for key, value in arguments.items()
        ]
    except ValueError as error:
        raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", f"/arguments: {error}") from None


def environment_of(call: ResolvedCall) -> dict[str, str]:
    """The definition's variables and the step's idempotency key. Raises ExecutionFailed."""
    try:
        given = {name: text_of(value) for name, value in call.arguments.get("environment", {}).items()}
    except ValueError as error:
        raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", f"/environment: {error}") from None
    return {"FLINT_IDEMPOTENCY_KEY": call.idempotency_key, "FLINT_RUN_ID": call.run_id, **given}


def stdin_of(call: ResolvedCall) -> bytes:
    """Standard input: a string as it is, anything else as JSON, nothing when there is none."""
    value = call.arguments.get("stdin")
    if value is None:
        return b""
    return value.encode() if isinstance(value, str) else orjson.dumps(value)


def limits_of(call: ResolvedCall, settings: ScriptSettings, limits: LimitSettings) -> ProgramLimits:
    """The worker's limits, and the call's own deadline when that is earlier."""
    waits = call.arguments.get("await", True)
    deadline_s = call.deadline_s if waits else None
    return ProgramLimits(
        timeout_s=settings.timeout_s if deadline_s is None else min(settings.timeout_s, deadline_s),
        cpu_s=settings.cpu_s,
        memory_bytes=settings.memory_bytes,
        file_bytes=settings.file_bytes,
        files=settings.files,
        processes=settings.processes,
        output_bytes=min(settings.output_bytes, limits.value_bytes),
    )


def result_of(call: ResolvedCall, ending: Ending, limits: ProgramLimits, noun: str) -> Any:
    """What the task outputs, as `return` asks for it. Raises ExecutionFailed when it ended badly.

    An exit code other than 0 is a problem, unless `return` is `code` or `all`: then the definition sees it.
    """
    wanted = call.arguments.get("return", "stdout")
    if ending.by is not EndedBy.ITSELF:
        raise _cut_short(call, ending, limits, noun)
    if ending.signal is not None:
        raise _signalled(call, ending, limits, noun)
    code = ending.code if ending.code is not None else 0
    if code != 0 and wanted not in ("code", "all"):
        raise failure(call, ProblemType.RUNTIME, 500, f"The {noun} ended with exit code {code}", _tail(ending))
    match wanted:
        case "code":
            return code
        case "none":
            return None
        case "all":
            return {"code": code, "stdout": _text(ending.stdout), "stderr": _text(ending.stderr)}
        case "stderr":
            return _text(ending.stderr)
    return _text(ending.stdout)


def _cut_short(call: ResolvedCall, ending: Ending, limits: ProgramLimits, noun: str) -> ExecutionFailed:
    match ending.by:
        case EndedBy.TIMEOUT | EndedBy.CANCELLED:
            return failure(call, ProblemType.TIMEOUT, 408, f"The {noun} took too long", _tail(ending))
        case EndedBy.OUTPUT:
            detail = f"it wrote more than {limits.output_bytes} bytes; write less, or to a place of your own"
            return failure(call, ProblemType.PAYLOAD_TOO_LARGE, 413, f"The {noun} wrote too much", detail)
        case EndedBy.MEMORY:
            detail = f"its processes together may use {limits.memory_bytes} bytes"
            return failure(call, ProblemType.LIMIT_EXCEEDED, 429, f"The {noun} used too much memory", detail)
        case EndedBy.PROCESSES:
            detail = f"it may have {limits.processes} processes"
            return failure(call, ProblemType.LIMIT_EXCEEDED, 429, f"The {noun} started too many processes", detail)
        case EndedBy.NOT_STARTED:
            detail = "its program is not there or may not be executed on this worker"
            return failure(call, ProblemType.CONFIGURATION, 400, f"The {noun} cannot be started", detail)
        case EndedBy.NOT_ISOLATED:
            detail = (
                "worker.scripts.isolation demands namespaces, or programs would run as root, and there are no "
                "namespaces: run the worker as a user of its own, or name one in worker.scripts.user (`root`, when "
                "they shall be root)"
            )
            return failure(call, ProblemType.CONFIGURATION, 400, f"The {noun} cannot be isolated", detail)
        case EndedBy.NO_FOLDER:
            title = f"The {noun} has no work folder on this worker now"
            return failure(call, ProblemType.RUNTIME, 503, title, ending.detail)
    return failure(call, ProblemType.RUNTIME, 500, f"The {noun} was lost", "nobody knows how it ended")


def _signalled(call: ResolvedCall, ending: Ending, limits: ProgramLimits, noun: str) -> ExecutionFailed:
    number = ending.signal or 0
    if number == signal.SIGXCPU:
        detail = f"one process may use {limits.cpu_s} s of processor time"
        return failure(call, ProblemType.LIMIT_EXCEEDED, 429, f"The {noun} computed too long", detail)
    if number == signal.SIGXFSZ:
        detail = f"a file may have {limits.file_bytes} bytes"
        return failure(call, ProblemType.LIMIT_EXCEEDED, 429, f"The {noun} wrote too large a file", detail)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return failure(call, ProblemType.RUNTIME, 500, f"The {noun} was ended by {name}", _tail(ending))


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def _tail(ending: Ending) -> str:
    return _text(ending.stderr[-4 * _TAIL :]).strip()[-_TAIL:]
