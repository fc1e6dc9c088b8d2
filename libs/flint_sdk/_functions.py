"""Custom functions: the decorator, what a function is given, and how it fails.

A function's parameters and result are typed by its signature: pydantic validates both, and the JSON Schemas that Flint
checks calls against are made from them.
"""

from __future__ import annotations

import inspect
import threading
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, ParamSpec, TypeVar, overload

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from flint_core.functions.function import is_function_name, is_function_version
from flint_core.problems import ProblemType

__all__ = ["Function", "FunctionContext", "FunctionError", "function"]

P = ParamSpec("P")
R = TypeVar("R")

_FAULTS: Final = 5


class FunctionError(Exception):
    """Raise it in a function to fail with a problem that definitions can catch by type and status.

    `type`: a URI, Flint's standard type «runtime» unless told. `status`: unless told, 503 when `retryable`, else 422.
    `retry_after_s`: how long a retry should wait at least. Nothing here may hold a secret.
    """

    def __init__(
        self,
        title: str,
        *,
        type: str = ProblemType.RUNTIME,
        status: int | None = None,
        detail: str = "",
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(title if not detail else f"{title}: {detail}")
        self.title = title
        self.type = type
        self.status = (503 if retryable else 422) if status is None else status
        self.detail = detail
        self.retryable = retryable
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a function may know about its task."""

    function: str
    version: str
    idempotency_key: str
    run: str
    step: str
    attempt: int
    dispatch: int
    trace_id: str
    deadline: datetime | None


class FunctionContext:
    """A function's view of its task: take it as a parameter annotated with this type. Safe to use from any thread.

    `idempotency_key` is the same for every attempt and repetition of this step of this run: use it to refuse doing a
    thing twice. `attempt` counts the step's attempts, `dispatch` how often this attempt was given to a function worker.
    `deadline` (UTC) is when the outcome is not wanted any more.
    """

    def __init__(self, facts: TaskFacts, report: Callable[[float | None, str], None]) -> None:
        self.function = facts.function
        self.version = facts.version
        self.idempotency_key = facts.idempotency_key
        self.run = facts.run
        self.step = facts.step
        self.attempt = facts.attempt
        self.dispatch = facts.dispatch
        self.trace_id = facts.trace_id
        self.deadline = facts.deadline
        self._report = report
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether the outcome is not wanted any more. A function in a thread should look now and then and return."""
        return self._cancelled.is_set()

    def wait_cancelled(self, timeout_s: float) -> bool:
        """Sleeps, for functions in a thread: until the task is cancelled (True) or the time has passed (False)."""
        return self._cancelled.wait(timeout_s)

    def progress(self, percent: float | None = None, message: str = "") -> None:
        """Tells those who watch the run: 0 to 100, and a text of up to 200 characters. Sent a few times a second at
        most. Heartbeats need no help: they are sent as long as the process lives.
        """
        self._report(None if percent is None else min(100.0, max(0.0, float(percent))), message)

    def cancel(self) -> None:
        """Called by the function worker when the task is not wanted any more."""
        self._cancelled.set()


class Function(Generic[P, R]):
    """A function with its name, version and schemas. Calling it calls the Python function itself, unvalidated."""

    def __init__(
        self, call: Callable[P, R], name: str, version: str, description: str | None, heartbeat_timeout_s: float
    ) -> None:
        if not is_function_name(name):
            raise ValueError(f"{name!r} is no name of a function: expected one such as 'myteam/resize'")
        if not is_function_version(version):
            raise ValueError(f"{version!r} is no semantic version such as '1.2.0'")
        if not 1 <= heartbeat_timeout_s <= 3600:
            raise ValueError("heartbeat_timeout_s must be 1 to 3600")
        self.name = name
        self.version = version
        self.heartbeat_timeout_s = heartbeat_timeout_s
        text = description if description is not None else inspect.getdoc(call) or ""
        self.description = text.strip().split("\n\n")[0][:1000]
        self.is_async = inspect.iscoroutinefunction(call)
        self._call = call
        self.__doc__ = call.__doc__
        self.__name__ = getattr(call, "__name__", name)
        self.__wrapped__ = call
        try:
            self._read_signature()
        except (PydanticSchemaGenerationError, PydanticUserError, NameError) as error:
            raise TypeError(f"the signature of {self.__name__} cannot be used: {error}") from error

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The Python function."""
        return self._call(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Function {self.name}:{self.version}>"

    def _read_signature(self) -> None:
        hints = typing.get_type_hints(self._call, include_extras=True)
        fields: dict[str, Any] = {}
        self._parameters: dict[str, str] = {}
        self._context: str | None = None
        extra = "forbid"
        self._extra = False
        for parameter in inspect.signature(self._call).parameters.values():
            annotation = hints.get(parameter.name, Any)
            if annotation is FunctionContext:
                self._context = parameter.name
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                extra, self._extra = "allow", True
            elif parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
                raise TypeError(f"{self.__name__}: parameter {parameter.name} must be a named one")
            else:
                # A field's own name must not meet one of BaseModel's: the alias is what callers see.
                field = f"p{len(fields)}"
                default = ... if parameter.default is inspect.Parameter.empty else parameter.default
                fields[field] = (annotation, Field(default, alias=parameter.name))
                self._parameters[field] = parameter.name
        config = ConfigDict(extra=extra, title=self.__name__, arbitrary_types_allowed=False)  # type: ignore[typeddict-item]
        self._arguments: type[BaseModel] = create_model(f"{self.__name__}_arguments", __config__=config, **fields)
        self._result: TypeAdapter[Any] = TypeAdapter(hints.get("return", Any))
        self.input_schema = orjson.dumps(self._arguments.model_json_schema(by_alias=True))
        schema = self._result.json_schema(mode="serialization")
        self.output_schema = orjson.dumps(schema) if schema else b""

    def bind(self, arguments: bytes, context: FunctionContext) -> dict[str, Any]:
        """Keyword arguments from JSON. Raises FunctionError (validation) that repeats no value."""
        try:
            model = self._arguments.model_validate_json(arguments)
        except ValidationError as error:
            raise _invalid("Invalid arguments", error) from None
        found = {name: getattr(model, field) for field, name in self._parameters.items()}
        if self._extra:
            found |= model.model_extra or {}
        if self._context is not None:
            found[self._context] = context
        return found

    def encode(self, result: Any) -> bytes:
        """The result as JSON. Raises FunctionError (validation) when it is not what the signature says."""
        try:
            return self._result.dump_json(self._result.validate_python(result), by_alias=True)
        except ValidationError as error:
            raise _invalid("Invalid result", error) from None
        except ValueError as error:  # what pydantic cannot serialise
            raise FunctionError(
                "Invalid result", type=ProblemType.VALIDATION, status=400, detail=f"{type(error).__name__}"
            ) from None

    @property
    def python(self) -> Callable[P, R]:
        """The Python function."""
        return self._call


def _invalid(title: str, error: ValidationError) -> FunctionError:
    faults = [
        f"/{'/'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
        for fault in error.errors(include_input=False, include_url=False, include_context=False)
    ]
    more = f" (and {len(faults) - _FAULTS} more)" if len(faults) > _FAULTS else ""
    return FunctionError(title, type=ProblemType.VALIDATION, status=400, detail="; ".join(faults[:_FAULTS]) + more)


@overload
def function(
    *, name: str, version: str, description: str | None = ..., heartbeat_timeout_s: float = ...
) -> Callable[[Callable[P, R]], Function[P, R]]: ...
@overload
def function(
    call: Callable[P, R], /, *, name: str, version: str, description: str | None = ..., heartbeat_timeout_s: float = ...
) -> Function[P, R]: ...
def function(
    call: Callable[P, R] | None = None,
    /,
    *,
    name: str,
    version: str,
    description: str | None = None,
    heartbeat_timeout_s: float = 30.0,
) -> Any:
    """Makes a function callable from definitions: `call: myteam/resize:1.2.0`.

        @function(name="myteam/resize", version="1.2.0")
        async def resize(url: str, width: int = 640, *, context: FunctionContext) -> Resized: ...

    Async functions run in the event loop, others in threads. The first paragraph of the docstring is the description
    unless one is given. A task without a sign of life for `heartbeat_timeout_s` (1 to 3600) is given to another
    function worker. Raises ValueError and TypeError for a name, version or signature that cannot be used.
    """

    def decorate(found: Callable[P, R]) -> Function[P, R]:
        return Function(found, name, version, description, heartbeat_timeout_s)

    return decorate if call is None else decorate(call)
