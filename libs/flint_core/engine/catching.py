"""What a `try` does: attempts, the filter of its catch, retries with backoff, and the tasks of the catch."""

from __future__ import annotations

import hashlib
from datetime import tzinfo
from typing import TYPE_CHECKING, Any, Final

from flint_core.durations import Duration, DurationError, parse_duration
from flint_core.effects import TimerKind
from flint_core.engine.bodies import run_scope
from flint_core.engine.frames import Frame, Phase, Strand
from flint_core.engine.kernel import CAUGHT, TRYING, Kernel
from flint_core.problems import Problem, ProblemType, canonical_type
from flint_core.traces import StepState

if TYPE_CHECKING:
    from flint_core.plan import CatchPlan, RetryPlan

__all__ = ["attempt_expired", "catch_variables", "retry_due", "try_body"]

_GUARDING: Final = 11
_POLICY: Final = 12
PAUSED: Final = 13
HANDLING: Final = 20

_MAX_ATTEMPTS: Final = 5
_MAX_DURATION_MS: Final = 3_600_000
_MAX_DELAY_MS: Final = 600_000
_DELAY_MS: Final = 1_000


def try_body(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """Enter, try, catch, pause, handle: by station."""
    plan = frame.plan
    catch = plan.catch
    assert catch is not None  # noqa: S101 - only a try has this body
    station = frame.station
    if station == TRYING:
        if not run_scope(kernel, strand, frame, plan.scope, frame.iteration):
            _end_attempt(kernel, frame)
            frame.phase = plan.after_body
    elif station == 0:
        if frame.tries == 0:
            frame.since = kernel.now
        _begin_attempt(kernel, strand, frame, catch)
    elif station == HANDLING:
        if not run_scope(kernel, strand, frame, catch.scope or (), frame.iteration):
            frame.phase = plan.after_body
    else:
        _caught(kernel, strand, frame, catch)


def _begin_attempt(kernel: Kernel, strand: Strand, frame: Frame, catch: CatchPlan) -> None:
    retry = catch.retry
    if retry is not None and retry.limit_attempt is not None:
        frame.effect_until = kernel.until(frame, retry.limit_attempt, frame.input)
        frame.effect = kernel.emit_timer(strand, frame, frame.effect_until, TimerKind.DEADLINE)
    frame.tries += 1
    frame.cursor = 0
    frame.value, frame.size = frame.input, frame.input_size
    frame.child_variables = frame.variables
    frame.station = TRYING


def _end_attempt(kernel: Kernel, frame: Frame) -> None:
    if frame.effect:
        kernel.retract(frame.effect)
        frame.effect = 0


def _caught(kernel: Kernel, strand: Strand, frame: Frame, catch: CatchPlan) -> None:
    problem = frame.problem
    assert problem is not None  # noqa: S101 - the station was set with it
    frame.child_variables = catch_variables(frame)
    if frame.station == CAUGHT:
        if not _matches(catch, problem):
            kernel.fault(strand, problem, frame.retry_after)
            return
        frame.station = _GUARDING
    if frame.station == _GUARDING:
        if catch.guard is not None and not _allows(_with_error(kernel, frame, catch.guard)):
            kernel.fault(strand, problem, frame.retry_after)
            return
        frame.station = _POLICY
    retry = catch.retry
    if retry is not None:
        policy = _with_error(kernel, frame, retry.policy)
        if _allows(policy):
            delay_ms = _delay_ms(kernel, frame, retry, policy)
            if delay_ms is not None:
                _pause(kernel, strand, frame, delay_ms)
                return
        if catch.scope is None:
            kernel.fault(strand, problem, frame.retry_after)
            return
    frame.value, frame.size = frame.input, frame.input_size
    frame.cursor = 0
    frame.round = 0
    if catch.scope is None:
        frame.phase = frame.plan.after_body
    else:
        frame.station = HANDLING


def _with_error(kernel: Kernel, frame: Frame, binding: Any) -> Any:
    outer = frame.variables
    frame.variables = frame.child_variables
    try:
        return kernel.value(frame, binding, frame.input)
    finally:
        frame.variables = outer


def catch_variables(frame: Frame) -> dict[str, Any]:
    """The variables in a catch: those around the try, and the error by its name."""
    catch, problem = frame.plan.catch, frame.problem
    assert catch is not None and problem is not None  # noqa: S101 - only called while something is caught
    return {**frame.variables, catch.name: problem.to_json()}


def _matches(catch: CatchPlan, problem: Problem) -> bool:
    for member, wanted in catch.matches.items():
        if member == "type":
            if canonical_type(str(wanted)) != canonical_type(problem.type):
                return False
        elif getattr(problem, member) != wanted:
            return False
    return True


def _allows(outcome: dict[str, Any]) -> bool:
    when, except_when = outcome.get("when", True), outcome.get("exceptWhen", False)
    return when is not None and when is not False and (except_when is None or except_when is False)


def _pause(kernel: Kernel, strand: Strand, frame: Frame, delay_ms: int) -> None:
    if delay_ms <= 0:
        retry_due(frame)
        return
    frame.station = PAUSED
    frame.effect_until = kernel.now + delay_ms
    frame.effect = kernel.emit_timer(strand, frame, frame.effect_until, TimerKind.RETRY)
    kernel.note_waiting(frame)
    kernel.sleep(strand)


def retry_due(frame: Frame) -> None:
    """The pause is over: the next attempt begins at the next turn."""
    frame.problem = None
    frame.retry_after = None
    frame.attempt = frame.used = frame.used + 1
    frame.round = 0
    frame.station = 0
    frame.phase = Phase.BODY


def attempt_expired(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """The attempt took longer than its limit: it fails, and this try may catch that."""
    frame.effect = 0
    while len(strand.stack) > 1 and strand.stack[-2] is not frame:
        kernel.close(strand, StepState.CANCELLED, None)
    detail = f"An attempt of '{frame.plan.name}' did not end within its limit."
    kernel.fault(strand, Problem(ProblemType.TIMEOUT, 408, "Timed out", detail, strand.stack[-1].plan.pointer))


def _delay_ms(kernel: Kernel, frame: Frame, retry: RetryPlan, policy: dict[str, Any]) -> int | None:
    """How long to pause before the next attempt; None when the limits are reached."""
    now = kernel.now
    limited = retry.limit_count is not None or "limitDuration" in policy
    count = retry.limit_count if limited else _MAX_ATTEMPTS
    if count is not None and frame.tries >= count:
        return None
    try:
        zone = kernel.plan.zone
        longest = _length(policy, "limitDuration", now, zone, None if limited else _MAX_DURATION_MS)
        base = _length(policy, "delay", now, zone, _DELAY_MS) or 0
        cap = _length(policy, "maxDelay", now, zone, _MAX_DELAY_MS) or 0
        increment = _length(policy, "increment", now, zone, base) or 0
        low = _length(policy, "jitterFrom", now, zone, 0) or 0
        high = _length(policy, "jitterTo", now, zone, low) or 0
    except DurationError as error:
        kernel.expression_fault(frame, str(error))
    repeats = frame.tries - 1
    if retry.backoff == "linear":
        delay = base + increment * repeats
    elif retry.backoff == "exponential":
        delay = round(base * min(retry.factor ** min(repeats, 64), 1e12))
    else:
        delay = base
    delay = min(delay, cap) if retry.backoff != "constant" else delay
    if high > 0:
        delay += low + round(max(high - low, 0) * _fraction(kernel, frame))
    delay = max(delay, frame.retry_after or 0)
    if longest is not None and now + delay - frame.since > longest:
        return None
    return delay


def _length(policy: dict[str, Any], name: str, now_ms: int, zone: tzinfo, default: int | None) -> int | None:
    value = policy.get(name)
    if value is None:
        return default
    duration = value if isinstance(value, Duration) else parse_duration(value)
    return duration.length_ms(now_ms, zone)


def _fraction(kernel: Kernel, frame: Frame) -> float:
    """A number from 0 to 1 that is a function of run, step and attempt: the same on every replay."""
    text = f"{kernel.facts.seed}/{frame.plan.pointer}/{frame.iteration}/{frame.used}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (2**48 - 1)
