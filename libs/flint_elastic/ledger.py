"""What is written down of a decision, and later how right it was. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flint_elastic.decision import Decision
from flint_elastic.observation import Observation, WorkerState
from flint_elastic.policy import PoolPolicy

__all__ = ["Verdict", "evaluate", "record"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How right a decision was, over the time that `evaluate` was given."""

    over_s: float
    """Time that was looked at."""
    wait_p95_s: float | None
    """Greatest 95th percentile of waits that was observed; None: nothing began."""
    kept_target: bool | None
    """Whether it stayed within the policy's target; None: nothing began and nothing waited."""
    missing_slot_s: float
    """Slots that waiting legs lacked, times how long: under-provisioned."""
    spare_slot_s: float
    """Free slots beyond buffer and standby, times how long: over-provisioned."""
    rate_error: float
    """Mean of arrivals per second observed minus those planned for: above 0, more came."""
    rating: str
    """"good", "too few", "too many", or "idle" when nothing arrived and nothing ran."""

    def to_json(self) -> dict[str, Any]:
        """All members, numbers rounded."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def record(decision: Decision) -> dict[str, Any]:
    """The ledger's entry: JSON values only. Worker ids are listed; bounded by the policy's steps."""
    return {
        "at": decision.at,
        "action": decision.action,
        "wanted": decision.wanted,
        "wanted_slots": decision.wanted_slots,
        "start": decision.start,
        "revive": list(decision.revive),
        "drain": list(decision.drain),
        "end": list(decision.end),
        "why": decision.why,
        "shadow": decision.shadow,
        "inputs": decision.inputs,
    }


def evaluate(policy: PoolPolicy, decision: Decision, later: Sequence[Observation]) -> Verdict:
    """How right a decision was by what was observed after it, in order of time. One per decision, or per decision that
    acted.

    A useful time to look back over is the start-up time plus a few minutes. Each observation stands for the time since
    the one before; waits during the start-up time count too, because a forecast could have saved them.
    """
    moment, missing, spare, rate_s, over_s = decision.at, 0.0, 0.0, 0.0, 0.0
    waits = [seen.wait_p95_s for seen in later if seen.wait_p95_s is not None]
    worked = False
    for seen in later:
        span_s = max(0.0, seen.at - moment)
        moment = max(moment, seen.at)
        over_s += span_s
        ready = [worker for worker in seen.workers if worker.state is WorkerState.READY]
        free = sum(max(0, worker.slots - worker.legs) for worker in ready)
        missing += span_s * max(0, seen.waiting - free - decision.state.stuck)
        spare += span_s * max(0, free - seen.waiting - policy.buffer_slots - policy.standby_slots)
        rate_s += span_s * (seen.arrivals_per_s - decision.state.rate.per_s)
        worked = worked or seen.running > 0 or seen.waiting > 0 or seen.arrivals_per_s > 0
    longest = max(waits, default=None)
    oldest = max((entry.oldest_wait_s for seen in later for entry in seen.backlog if entry.waiting), default=0.0)
    late = (longest is not None and longest > policy.target_wait_s) or (missing > 0 and oldest > policy.target_wait_s)
    kept = None if not worked else not late
    return Verdict(
        over_s=over_s,
        wait_p95_s=longest,
        kept_target=kept,
        missing_slot_s=missing,
        spare_slot_s=spare,
        rate_error=rate_s / over_s if over_s > 0 else 0.0,
        rating=_rating(policy, worked, late, spare, over_s),
    )


def _rating(policy: PoolPolicy, worked: bool, late: bool, spare_slot_s: float, over_s: float) -> str:
    if late:
        return "too few"
    floor = policy.minimum * policy.slots_per_worker * over_s
    # A worker's slots that cannot be halved, and those that the minimum asks for, are nobody's error.
    if spare_slot_s > 2 * policy.slots_per_worker * over_s + floor:
        return "too many"
    return "good" if worked else "idle"
