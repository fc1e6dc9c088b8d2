"""The targets, and in how many rounds they hold. Pure: figures in, verdicts out.

A ratio is one of figures of the same round, so what else the machine did then fell on both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from figures import Round

__all__ = ["TARGETS", "Target", "Verdict", "verdicts"]

Values = Mapping[str, Mapping[str, float]]
"""A round's figures, by engine and name."""
WORKFLOWS, SERVICES = "Restate, workflows", "Restate, services"


@dataclass(frozen=True)
class Target:
    """`value` of a round is to be at least, or at most, `limit`; None when the round lacks a figure."""

    title: str
    value: Callable[[Values], float | None]
    limit: float
    least: bool
    unit: str = "×"

    def holds(self, value: float) -> bool:
        """Whether it is good enough."""
        return value >= self.limit if self.least else value <= self.limit

    @property
    def text(self) -> str:
        """Such as "≥ 2.5 ×"."""
        return f"{'≥' if self.least else '≤'} {self.limit:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Verdict:
    """A target and what each round in which it was measured says."""

    target: Target
    values: tuple[float, ...]
    rounds: int
    """All rounds, those included that lack it."""

    @property
    def held(self) -> int:
        """Rounds in which it holds."""
        return sum(map(self.target.holds, self.values))

    @property
    def met(self) -> bool | None:
        """Whether it held in all rounds. None: measured in none."""
        return self.held == self.rounds if self.values else None

    @property
    def median(self) -> float | None:
        """The median round's."""
        return statistics.median(self.values) if self.values else None

    @property
    def text(self) -> str:
        """In words."""
        if not self.values:
            return "not measured"
        return f"{'met' if self.met else 'missed'}: holds in {self.held} of {self.rounds}"


def verdicts(rounds: Sequence[Round]) -> list[Verdict]:
    """All targets, whether measured or not."""
    found = []
    for target in TARGETS:
        values = (target.value(each.values) for each in rounds)
        found.append(Verdict(target, tuple(value for value in values if value is not None), len(rounds)))
    return found


def _figure(values: Values, engine: str, name: str) -> float | None:
    return values.get(engine, {}).get(name)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _faster(title: str, name: str, rivals: Mapping[str, float], theirs: str = "") -> list[Target]:
    """A rate of Flint's is so many times the rivals'; `theirs` when it is not called the same."""

    def against(rival: str) -> Callable[[Values], float | None]:
        return lambda values: _ratio(_figure(values, "Flint", name), _figure(values, rival, theirs or name))

    return [Target(f"{title}, of {rival}", against(rival), least, True) for rival, least in rivals.items()]


def _shorter(title: str, name: str, most: float, rivals: Sequence[str] = (WORKFLOWS, SERVICES)) -> list[Target]:
    """A time of Flint's is at most such a share of the rivals'."""

    def against(rival: str) -> Callable[[Values], float | None]:
        return lambda values: _ratio(_figure(values, "Flint", name), _figure(values, rival, name))

    return [Target(f"{title}, of {rival}", against(rival), most, False) for rival in rivals]


def _own(title: str, name: str, most: float, unit: str) -> Target:
    return Target(title, lambda values: _figure(values, "Flint", name), most, False, unit)


_SINGLY = {WORKFLOWS: 2.5, SERVICES: 2.0, "DBOS": 10.0, "Prefect": 200.0, "Celery, Redis": 2.0, "procrastinate": 2.0}
_PLAIN = {WORKFLOWS: 2.5, SERVICES: 2.0}
_BATCHES = {WORKFLOWS: 8.0, SERVICES: 8.0}
_STEPS = {WORKFLOWS: 4.0, SERVICES: 4.0}
TARGETS: tuple[Target, ...] = (
    *_faster("W1 runs/s, one by one", "w1", _SINGLY),
    *_faster("W1 runs/s, one by one, by plain gRPC", "w1_plain", _PLAIN, "w1"),
    *_faster("W1 runs/s, one by one, by plain gRPC, one call a run", "w1_one_call", _PLAIN, "w1"),
    *_faster("W1 runs/s, in hundreds", "w1_batch", _BATCHES),
    *_shorter("W2 ten steps alone, median", "ten_ms", 0.7),
    *_shorter("W2 ten steps alone, p99", "ten_p99", 0.7),
    *_faster("W2 steps/s, 50 runs at a time", "w2_50", _STEPS),
    *_faster("W2 steps/s, 128 runs at a time", "w2", _STEPS),
    *_faster("W2 steps/s, 500 runs at a time", "w2_500", _STEPS),
    Target(
        "W2 steps/s, in hundreds, of raw publishes",
        lambda values: _ratio(_figure(values, "Flint", "w2_batch"), _figure(values, "Flint", "publish")),
        0.6,
        True,
    ),
    *_shorter("W3 1,000 branches with join", "fan_s", 0.4),
    _own("W3 100,000 branches with join", "fan_100k_s", 20.0, "s"),
    _own("W3 100,000 branches, most that a process kept of memory", "fan_100k_kept_mib", 40.0, "MiB"),
    *_shorter("W4 start → step begins, idle, median", "begin_ms", 1.0),
    *_shorter("W4 start → step begins, idle, p99", "begin_p99", 1.0),
    *_shorter("W4 start → step begins, half load, median", "begin_half_ms", 1.0),
    *_shorter("W4 start → step begins, half load, p99", "begin_half_p99", 1.0),
    _own("W5 urgent run while 10,000 queue, median", "urgent_ms", 20.0, "ms"),
)
