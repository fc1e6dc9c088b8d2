"""Executors: one file per function, each carries out the side effect of a call step.

An executor never sees the run's state, the journal or the machine. What it returns is JSON (the leg runner enforces the
limit on its size); what it raises is `ExecutionFailed` with a typed problem. Any other exception is a defect and is
recorded as a runtime problem without its text, which might hold a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from flint_core.problems import Problem
from flint_ops.config import Settings

if TYPE_CHECKING:
    from flint_jq import EvaluatorPool
    from flint_worker.executors.outbound import Outbound

__all__ = ["ExecutionFailed", "Executor", "ExecutorFactory", "RawJson", "ResolvedCall", "build_executors", "unheard"]


def unheard(percent: float | None, message: str) -> None:
    """Nobody hears of the call's progress."""


class ResolvedCall(NamedTuple):
    """A call with every argument evaluated, those that name secrets included: never log or record `arguments`.

    `deadline_s` is the time from now after which the outcome is no longer wanted; None when there is no such limit. The
    leg cancels a call whose time has passed, so an executor needs it only for what cancelling cannot stop.
    """

    function: str
    arguments: dict[str, Any]
    idempotency_key: str
    step: str
    run_id: str
    trace_id: str
    deadline_s: float | None = None
    namespace: str = ""
    attempt: int = 1
    report: Callable[[float | None, str], None] = unheard
    """Tells whoever watches the run: progress (0 to 100, None leaves it as it was) and a text (empty: likewise)."""
    workflow: str = ""


class RawJson:
    """JSON that nobody has read: a large value, which would take too long to become objects and text again.

    An executor may give it as its output, or as a member of it, with the secrets that are to be taken out; and takes
    it for the arguments that it names in `raw_arguments`. No dataclass: orjson would write its fields.
    """

    __slots__ = ("data", "redact")

    def __init__(self, data: bytes, redact: tuple[str, ...] = ()) -> None:
        self.data = data
        self.redact = redact


class ExecutionFailed(Exception):
    """The function failed in a way the definition may catch and retry.

    `retry_after_ms` is the other side's own wish, if it had one. Neither may hold a secret.
    """

    def __init__(self, problem: Problem, retry_after_ms: int | None = None) -> None:
        super().__init__(problem.title)
        self.problem = problem
        self.retry_after_ms = retry_after_ms


class Executor(Protocol):
    """Carries out one function. One object serves many calls at once.

    A cancelled `execute` stops as soon as it can and lets CancelledError pass. An executor that has `raw_arguments`
    (names) takes a `RawJson` for these.
    """

    @property
    def unfinished(self) -> int:
        """Side effects that may still go on although their call has ended (in a thread that cannot be stopped)."""
        ...

    async def execute(self, call: ResolvedCall) -> Any:
        """The call's JSON result. Raises `ExecutionFailed`."""
        ...

    async def close(self) -> None:
        """Gives back pools and connections. No call is running any more."""
        ...


ExecutorFactory = Callable[[Settings], Executor]


def _factories(outbound: Outbound, evaluators: EvaluatorPool | None) -> Mapping[str, ExecutorFactory]:
    from flint_worker.executors.a2a import A2aExecutor  # noqa: PLC0415  (executors import this module)
    from flint_worker.executors.asyncapi import AsyncApiExecutor  # noqa: PLC0415
    from flint_worker.executors.email import EmailExecutor  # noqa: PLC0415
    from flint_worker.executors.grpc import GrpcExecutor  # noqa: PLC0415
    from flint_worker.executors.http import HttpExecutor  # noqa: PLC0415
    from flint_worker.executors.mcp import McpExecutor  # noqa: PLC0415
    from flint_worker.executors.noop import NoopExecutor  # noqa: PLC0415
    from flint_worker.executors.openapi import OpenApiExecutor  # noqa: PLC0415
    from flint_worker.executors.sql import SqlExecutor  # noqa: PLC0415

    return {
        "a2a": lambda settings: A2aExecutor(settings, outbound),
        "asyncapi": lambda settings: AsyncApiExecutor(settings, outbound, evaluators),
        "email": EmailExecutor,
        "grpc": lambda settings: GrpcExecutor(settings, outbound),
        "http": lambda settings: HttpExecutor(settings, outbound),
        "mcp": lambda settings: McpExecutor(settings, outbound),
        "noop": lambda settings: NoopExecutor(),
        "openapi": lambda settings: OpenApiExecutor(settings, outbound),
        "sql": SqlExecutor,
    }


def build_executors(settings: Settings, evaluators: EvaluatorPool | None = None) -> dict[str, Executor]:
    """One executor per function name. Call it within a running event loop; `close` each at the end.

    `evaluators`: for expressions about messages (`asyncapi`); without them only those of the fast path are evaluated.
    The executors of HTTP share one client and one memory of tokens, which the executor `http` closes.
    """
    from flint_worker.executors.outbound import Outbound  # noqa: PLC0415  (it imports this module)
    from flint_worker.executors.running import program_executors  # noqa: PLC0415

    outbound = Outbound(settings)
    executors = {name: factory(settings) for name, factory in _factories(outbound, evaluators).items()}
    return {**executors, **program_executors(settings, executors["http"])}
