"""Who decides in a simulation: Flint's own code, and two plain reactive policies to compare it with. Pure.

The reactive ones are as kind to work as Flint is (they drain, and end what is empty), so that only their arithmetic
differs.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from itertools import takewhile
from typing import Final, Protocol

from flint_elastic.decide import decide
from flint_elastic.decision import Decision, PoolState
from flint_elastic.durations import DurationSketch
from flint_elastic.forecast import BUCKET_S, NO_FORECAST, Forecast
from flint_elastic.history import ArrivalHistory
from flint_elastic.observation import Observation, WorkerState, WorkerView
from flint_elastic.policy import PoolPolicy
from flint_elastic.simulation.engine import Ended, Moves
from flint_elastic.tracking import LOOK_AHEAD, Tracker

__all__ = ["Controller", "Flint", "QueueLength", "Utilisation"]

_POLL_S: Final = 15.0
_TOLERANCE: Final = 0.1
_LEAST_BURST: Final = 4


class Controller(Protocol):
    """Decides from what is seen, at every interval."""

    def __call__(self, seen: Observation, ended: Ended) -> Moves:
        """What to do now."""


class Flint:
    """The code of the registry's leader: `decide` with what it learns on the way."""

    def __init__(
        self,
        policy: PoolPolicy,
        forecast: Forecast = NO_FORECAST,
        tracker: Tracker | None = None,
        history: ArrivalHistory | None = None,
    ) -> None:
        self.policy = policy
        self.forecast = forecast
        self.tracker = tracker or Tracker()
        self.state = PoolState()
        self.decision: Decision | None = None
        self._sketch = DurationSketch()
        self._history = history or ArrivalHistory()
        self._buckets = len(self._history)

    def __call__(self, seen: Observation, ended: Ended) -> Moves:
        """Learn, complete the observation with what was learned, decide."""
        for seconds in ended.durations:
            self._sketch.add(seconds, seen.at)
        self._count(seen.at, ended.arrivals)
        longest = self._sketch.quantile(0.99)
        overstaying = 0
        if longest is not None:
            overstaying = sum(1 for _ in takewhile(lambda at: seen.at - at > longest, ended.running_since.values()))
        mean = self._sketch.cut_mean
        seen = replace(
            seen,
            leg_s=1.0 if mean is None else mean,
            leg_spread=min(5.0, self._sketch.cut_spread),
            overstaying=overstaying,
        )
        self.decision = decide(self.policy, self.state, seen, self.tracker.weighed(self.forecast))
        self.state = self.decision.state
        made = self.decision
        return Moves(made.start, made.revive, made.drain, made.end)

    def _count(self, at: float, arrivals: int) -> None:
        """Each bucket that is finished says how far the forecast may be trusted."""
        self._history.add(at, arrivals)
        if len(self._history) == self._buckets or not self.forecast.rates:
            return
        self._buckets = len(self._history)
        rates = self._history.rates()[-LOOK_AHEAD - 1 :]
        if len(rates) > LOOK_AHEAD:
            ended_at = math.floor(at / BUCKET_S) * BUCKET_S
            self.tracker = self.tracker.observe(self.forecast, rates[0], rates[-1], ended_at)


class _Reactive:
    """A wanted number every 15 s, within bounds; down only to the greatest number wanted in the last five minutes."""

    def __init__(self, policy: PoolPolicy) -> None:
        self.policy = policy
        self._polled_at = -math.inf
        self._recent: deque[tuple[float, int]] = deque()

    def __call__(self, seen: Observation, ended: Ended) -> Moves:
        live = [w for w in seen.workers if w.state in (WorkerState.STARTING, WorkerState.READY)]
        draining = [w for w in seen.workers if w.state is WorkerState.DRAINING]
        empty = tuple(worker.id for worker in draining if not worker.legs)
        if seen.at - self._polled_at < _POLL_S:
            return Moves(end=empty)
        if not self._recent:
            # What there is was wanted until now.
            self._recent.append((seen.at, len(live)))
        self._polled_at = seen.at
        wanted = min(self.policy.maximum, max(self.policy.minimum, self._wanted(seen, live)))
        self._recent.append((seen.at, wanted))
        while self._recent[0][0] < seen.at - self.policy.idle_before_end_s:
            self._recent.popleft()
        if wanted > len(live):
            burst = max(_LEAST_BURST, len(live))
            return Moves(start=min(wanted - len(live), burst, self.policy.maximum - len(seen.workers)), end=empty)
        surplus = len(live) - max(most for _, most in self._recent)
        ready = sorted((w for w in live if w.state is WorkerState.READY), key=lambda w: (w.legs, w.id))
        return Moves(drain=tuple(worker.id for worker in ready[: max(0, surplus)]), end=empty)

    def _wanted(self, seen: Observation, live: list[WorkerView]) -> int:
        raise NotImplementedError


class QueueLength(_Reactive):
    """In the manner of KEDA: as many workers as the legs that wait or run would fill, to and from zero."""

    def _wanted(self, seen: Observation, live: list[WorkerView]) -> int:
        return math.ceil((seen.waiting + seen.running) / self.policy.slots_per_worker)


class Utilisation(_Reactive):
    """In the manner of Kubernetes' horizontal autoscaler: 70 % of the slots in use, within 10 %, at least one
    worker."""

    def __init__(self, policy: PoolPolicy, target: float = 0.7) -> None:
        super().__init__(replace(policy, minimum=max(1, policy.minimum)))
        self._target = target

    def _wanted(self, seen: Observation, live: list[WorkerView]) -> int:
        ready = [worker for worker in live if worker.state is WorkerState.READY]
        if not ready:
            return max(1, len(live))
        used = sum(worker.legs for worker in ready) / sum(worker.slots for worker in ready)
        if abs(used / self._target - 1) <= _TOLERANCE:
            return len(live)
        return math.ceil(len(ready) * used / self._target)
