"""Why a decision was made, in words. Pure."""

from __future__ import annotations

from typing import Final

from flint_elastic.decision import Decision
from flint_elastic.forecast import Forecast
from flint_elastic.needs import Needs
from flint_elastic.observation import Observation
from flint_elastic.policy import PoolPolicy

__all__ = ["explain"]

_PARTS: Final = (
    ("steady", "arrivals"),
    ("running", "running legs"),
    ("backlog", "backlog"),
    ("overstaying", "legs that overstay"),
    ("coming", "schedules and timers"),
    ("forecast", "forecast"),
    ("reserved", "buffer and standby"),
)


def explain(
    policy: PoolPolicy,
    decision: Decision,
    seen: Observation,
    needs: Needs,
    forecast: Forecast,
    capacity: int,
    missing: int,
    held_by: str,
) -> str:
    """One sentence for people: what is done, what was wanted and of what, what there is."""
    done = _done(decision, missing, held_by)
    parts = [f"{word} {getattr(needs, name):.1f}" for name, word in _PARTS if getattr(needs, name) >= 0.05]
    text = f"{done}: {decision.wanted_slots:.1f} slots wanted"
    text += f" ({', '.join(parts)})" if parts else ""
    text += f", {capacity} there or starting"
    if decision.state.rate.spiking:
        text += "; a spike of arrivals"
    if decision.state.stuck:
        text += f"; {decision.state.stuck} waiting legs did not begin although slots were free and are not counted"
    if needs.forecast >= 0.05 or needs.keep_forecast >= 0.05:
        text += f"; the forecast ({forecast.source}) is trusted to {forecast.trust:.0%}"
    if missing and decision.start + len(decision.revive) < missing and not held_by:
        bound = "the maximum" if decision.start + len(seen.workers) >= policy.maximum else "the largest step"
        text += f"; {missing} workers were wanted, {bound} allows no more"
    elif decision.wanted == policy.minimum and needs.now < policy.minimum * policy.slots_per_worker:
        text += f"; the minimum of {policy.minimum} is kept" if policy.minimum else ""
    return f"shadow: {text}" if decision.shadow else text


def _done(decision: Decision, missing: int, held_by: str) -> str:
    words = []
    if decision.revive:
        words.append(f"take back {len(decision.revive)}")
    if decision.start:
        words.append(f"start {decision.start}")
    if decision.drain:
        words.append(f"drain {len(decision.drain)}")
    if decision.end:
        words.append(f"end {len(decision.end)}")
    if words:
        return ", ".join(words)
    return f"nothing, {missing} missing but {held_by}" if held_by else "nothing"
