"""The pool of guarded evaluators.

Each lane owns one process at most and takes one question at a time; of idle lanes that which was busy last is given the
next one. A lane's states: starting → idle → evaluating → idle, and, when an expression goes beyond a limit or its
process dies, → killed → starting. Only the caller whose expression did it hears of that; the others wait in the queue,
or run in other lanes, undisturbed. A process that somebody else killed (the system, for want of memory; a person) is
no fault of an expression: the question is put once more, to a new one.

Processes start with the pool, or, with `idle_s`, when the first question comes that no idle one can take: idle without
a process → starting → evaluating → idle → (`idle_s` without a question) → ending → idle without a process. One that
still holds more than `keep_bytes` a second after its answer ends then. A lane that ends its process is given no
question meanwhile.

When a lane cannot start a process it answers the question it has with EvaluatorsBusy and tries again with the next one.
When the service dies, its evaluators end: their input closes, and on Linux the kernel kills them at once.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson

from flint_core.outlines import Outline
from flint_jq.errors import EvaluationFailed, EvaluatorsBusy, FailureKind
from flint_jq.frames import CHECK, EVALUATE, LARGE, LARGEST, unpack
from flint_jq.process import EvaluatorProcess

__all__ = ["EvaluatorPool", "single"]

_KINDS: Final[dict[int, FailureKind]] = {
    ord("S"): "syntax",
    ord("E"): "runtime",
    ord("M"): "memory",
    ord("O"): "output",
}

_CRASHED: Final = "the expression needs too much memory, or it crashed jq"
_GRACE_S: Final = 0.02
_LEAST_WALL_S: Final = 5.0
"""However short its time, an expression that waits for a processor is not given up before."""
_SETTLED_S: Final = 1.0
"""So long after its answer a process has given back what it can."""
_TRIES: Final = 2
"""Processes that a question may lose to somebody else's kill before it counts as its own fault."""


@dataclass(frozen=True, slots=True)
class _Question:
    head: bytes
    body: bytes
    answer: asyncio.Future[bytes]
    within_s: float


class EvaluatorPool:
    """Evaluates jq in subprocesses that have limits on time, memory and output, and reach nothing outside.

    `size` processes; `evaluate_ms` of processor time per expression, so that an honest one survives on a busy machine;
    `patience`: it is given up after so many times that in wall time, 5 s at least, counted from when its turn comes;
    `memory_bytes` per process beyond what it needs itself; `output_bytes` of JSON per result; `waiting` questions in
    the queue at most; `large`: it also answers `take_apart`, `divide`, `mismatch` and `outline`. `within_ms` of a
    question may shorten its time. `idle_s`: processes start on demand and end after so long without a question, and
    sooner those that still hold more than `keep_bytes` (0: no bound; Linux only); None: all start with the pool and
    stay.
    For one event loop. `start` before use, `close` at the end.
    """

    def __init__(
        self,
        size: int,
        evaluate_ms: int,
        memory_bytes: int,
        output_bytes: int,
        *,
        waiting: int = 10_000,
        large: bool = False,
        patience: int = 10,
        idle_s: float | None = None,
        keep_bytes: int = 0,
    ) -> None:
        self._size = size
        self._large = large
        self._evaluate_s = evaluate_ms / 1000
        self._patience = patience
        self._memory_bytes = memory_bytes
        self._output_bytes = min(output_bytes, LARGEST - 1)
        self._idle_s = idle_s
        self._keep_bytes = keep_bytes
        self._waiting = waiting
        self._questions: deque[_Question] = deque()
        self._processes: dict[int, EvaluatorProcess] = {}
        self._idle: dict[int, asyncio.Future[_Question]] = {}  # by lane, that which was busy last at the end
        self._lanes: list[asyncio.Task[None]] = []
        self._closed = False
        self.replaced = 0
        """How many processes were lost or killed, for metrics."""

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that there are now."""
        return [process.pid for process in self._processes.values() if not process.ended]

    async def start(self) -> None:
        """Starts the processes, unless they start on demand; returns when all are ready. Raises EvaluatorsBusy when one
        does not start.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for lane in range(self._size if self._idle_s is None else 0):
                    group.create_task(self._ready(lane))
        except* EvaluatorsBusy:
            await self.close()
            raise EvaluatorsBusy("the evaluator processes did not start") from None
        self._lanes = [asyncio.create_task(self._serve(lane), name=f"jq-{lane}") for lane in range(self._size)]

    async def close(self) -> None:
        """Ends all processes. Questions that wait or run end with EvaluatorsBusy."""
        self._closed = True
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        while self._questions:
            _settle(self._questions.popleft(), EvaluatorsBusy("the evaluators are closed"))
        for process in list(self._processes.values()):
            await process.kill()
        self._processes.clear()

    async def evaluate(self, source: str, input: Any, variables: Mapping[str, Any], now_ms: int) -> Any:
        """The single result of a jq expression as JSON; null when it has none.

        Raises EvaluationFailed for the expression's own faults and EvaluatorsBusy when it could not be evaluated.
        """
        try:
            body = orjson.dumps([input, dict(variables), now_ms])
        except TypeError as error:
            raise EvaluationFailed("runtime", f"the input is not JSON: {error}") from None
        return single(orjson.loads(await self.evaluate_json(source, sorted(variables), body)))

    async def evaluate_json(self, source: str, names: list[str], body: bytes, *, within_ms: int | None = None) -> bytes:
        """The same on JSON as bytes: from `[input, {variables}, now_ms]` to an array of results, for `single`.

        `names`: the variables, sorted. Raises what `evaluate` raises.
        """
        return await self._ask(EVALUATE, source, names, body, within_ms=within_ms)

    async def take_apart(
        self,
        body: bytes,
        limit: int,
        *,
        source: str = "",
        names: Sequence[str] = (),
        redact: Sequence[str] = (),
        within_ms: int | None = None,
    ) -> tuple[bytes, list[bytes]]:
        """A large value, JSON, as a small one and the pieces that left it (`flint_core.payloads.spill`), in order.

        With `source` the value is the expression's single result on the body, which is `[input, {variables}, now_ms]`
        then. `redact`: texts to be replaced in its strings. Raises what `evaluate` raises; not JSON is a runtime
        failure.
        """
        options = {"limit": limit, "redact": list(redact), "output_bytes": self._output_bytes}
        return unpack(await self._ask(LARGE, source, list(names), body, options, within_ms))

    async def divide(
        self, body: bytes, spread: Sequence[int], limit: int, *, within_ms: int | None = None
    ) -> tuple[bytes, list[bytes]]:
        """A large collection, JSON, divided among branches: what `flint_core.branches.divide` gives, as JSON, and the
        values that it stores, in order; `{"count": -1}` when it is no array. Raises what `evaluate` raises.
        """
        options = {"limit": limit, "spread": list(spread), "output_bytes": self._output_bytes}
        return unpack(await self._ask(LARGE, "", [], body, options, within_ms))

    async def mismatch(self, body: bytes, schema: Any, *, within_ms: int | None = None) -> str | None:
        """Why a large value, JSON, does not match a JSON Schema; None when it does. Raises what `evaluate` raises."""
        message: str | None = orjson.loads(await self._ask(LARGE, "", [], body, {"schema": schema}, within_ms))
        return message

    async def outline(self, body: bytes, room: int, *, within_ms: int | None = None) -> Outline | None:
        """The outline of a large value, JSON, in at most `room` bytes (`flint_core.outlines.outline_of`). Raises what
        `evaluate` raises.
        """
        answer = orjson.loads(await self._ask(LARGE, "", [], body, {"outline": room}, within_ms))
        return None if answer is None else Outline(answer[0], frozenset(map(tuple, answer[1])))

    async def check(self, source: str, variables: frozenset[str]) -> str | None:
        """Compiles an expression without evaluating it. None when it is well-formed, else what is wrong."""
        try:
            await self._ask(CHECK, source, sorted(variables), b"")
        except EvaluationFailed as failure:
            return failure.detail if failure.kind == "syntax" else str(failure)
        return None

    async def _ask(
        self,
        operation: str,
        source: str,
        names: list[str],
        body: bytes,
        options: dict[str, Any] | None = None,
        within_ms: int | None = None,
    ) -> bytes:
        if self._closed or not self._lanes:
            raise EvaluatorsBusy("the evaluators are not running")
        if "\0" in source:
            raise EvaluationFailed("syntax", "the expression holds a NUL character")
        if len(body) > LARGEST:
            raise EvaluationFailed("memory", f"the input has {len(body)} bytes")
        within_s = self._evaluate_s if within_ms is None else min(self._evaluate_s, within_ms / 1000)
        head = [within_s, operation, source, names, *(() if options is None else (options,))]
        question = _Question(orjson.dumps(head), body, asyncio.Future(), within_s)
        if len(self._questions) >= self._waiting:
            raise EvaluatorsBusy(f"{self._waiting} expressions wait already")
        self._questions.append(question)
        self._hand_out()
        answer = await question.answer
        if answer[:1] in (b"V", b"L"):
            return answer[1:]
        raise EvaluationFailed(_KINDS.get(answer[0], "runtime"), answer[1:].decode("utf-8", "replace"))

    async def _ready(self, lane: int) -> EvaluatorProcess:
        process = self._processes.get(lane)
        if process is not None and process.ended:
            self.replaced += 1
            await self._end(lane)
            process = None
        if process is None:
            process = await EvaluatorProcess.start(
                self._memory_bytes, self._output_bytes, self._wall_s(self._evaluate_s) + 1.0, large=self._large
            )
            self._processes[lane] = process
        return process

    def _wall_s(self, within_s: float) -> float:
        return max(_LEAST_WALL_S, self._patience * within_s)

    def _hand_out(self) -> None:
        """Gives questions to idle lanes, first to those that have a process, last busy first."""
        while self._questions and self._idle and not self._closed:
            question = self._questions.popleft()
            if not question.answer.done():  # else the caller is gone
                lane = last = next(reversed(self._idle))
                if lane not in self._processes:
                    lane = next((lane for lane in reversed(self._idle) if lane in self._processes), last)
                self._idle.pop(lane).set_result(question)

    async def _serve(self, lane: int) -> None:
        while True:
            question = await self._next(lane)
            if question is None:
                await self._end(lane)
                continue
            try:
                await self._turn(lane, question)
            except Exception as error:  # a lane must not die with its queue: whoever asked hears of it
                _settle(question, error if isinstance(error, EvaluatorsBusy) else EvaluatorsBusy(repr(error)))
                if lane in self._processes:  # what stands in its pipes is not known
                    await self._end(lane)
            except asyncio.CancelledError:
                _settle(question, EvaluatorsBusy("the evaluators are closed"))
                raise

    async def _next(self, lane: int) -> _Question | None:
        """The lane's next question; None when its process has idled for long enough."""
        while self._questions:  # then no lane is idle
            question = self._questions.popleft()
            if not question.answer.done():
                return question
        given: asyncio.Future[_Question] = asyncio.get_running_loop().create_future()
        self._idle[lane] = given
        try:
            if self._idle_s is None or lane not in self._processes:
                return await given
            settled_s = min(_SETTLED_S, self._idle_s)
            await asyncio.wait({given}, timeout=settled_s)
            if not given.done() and not self._grown(lane):
                await asyncio.wait({given}, timeout=self._idle_s - settled_s)
            return given.result() if given.done() else None
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                _settle(given.result(), EvaluatorsBusy("the evaluators are closed"))
            raise
        finally:
            self._idle.pop(lane, None)

    def _grown(self, lane: int) -> bool:
        return bool(self._keep_bytes) and self._processes[lane].resident_bytes() > self._keep_bytes

    async def _end(self, lane: int) -> None:
        # Known until it is gone: `close`, which may come in between, ends what is known.
        await self._processes[lane].kill()
        del self._processes[lane]

    async def _turn(self, lane: int, question: _Question) -> None:
        """One question. A lane whose process had to go answers first and starts a new one then, unless on demand."""
        for tries in range(1, _TRIES + 1):
            process = await self._ready(lane)
            outcome = await self._asked(process, question)
            if isinstance(outcome, bytes):
                if not question.answer.done():
                    question.answer.set_result(outcome)
                return
            self.replaced += 1
            if outcome is not None or tries == _TRIES or question.answer.done():
                _settle(question, outcome or EvaluationFailed("memory", _CRASHED))
                break
            await self._end(lane)
        await self._end(lane)
        if self._idle_s is None:
            with suppress(EvaluatorsBusy, OSError):  # the next question tries again, and reports it
                await self._ready(lane)

    async def _asked(self, process: EvaluatorProcess, question: _Question) -> bytes | EvaluationFailed | None:
        """The answer, or why there is none and the process has to go; None when somebody else killed it."""
        asking = asyncio.create_task(process.ask(question.head, question.body))
        wall_s = self._wall_s(question.within_s)
        try:
            await asyncio.wait({asking}, timeout=wall_s)
            if not asking.done():
                # This process itself may have been held up, and the answer be there already.
                await asyncio.wait({asking}, timeout=_GRACE_S)
        finally:
            late = not asking.done()
            asking.cancel()
        if late:
            await asyncio.wait({asking})  # so that nobody reads from the process any more
            return EvaluationFailed("timeout", f"the expression did not end within {wall_s:g} s")
        if not isinstance(asking.exception(), EOFError):
            return asking.result()
        signalled = await process.ended_by()
        if signalled == signal.SIGKILL:
            return None
        if signalled == signal.SIGPROF:
            took = f"the expression took longer than {question.within_s * 1000:g} ms of processor time"
            return EvaluationFailed("timeout", took)
        return EvaluationFailed("memory", _CRASHED)


def single(results: list[Any]) -> Any:
    """The one result; null when there is none. Raises EvaluationFailed when there are more."""
    if len(results) > 1:
        raise EvaluationFailed("runtime", "the expression has more than one result")
    return results[0] if results else None


def _settle(question: _Question, error: Exception) -> None:
    if not question.answer.done():
        question.answer.set_exception(error)
