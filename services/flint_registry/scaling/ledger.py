"""The ledger: what was decided, why, and later how right it was. Rows of `scaling_decision`, kept for some days.

A decision is written down when it does something, when it wants another number than the last one, and once a minute
while the pool has work. Nobody waits for that: `run` writes what was put in a bounded queue; without PostgreSQL the
oldest are dropped with a line in the log. Each is judged once by what was observed after it; what a leader had not
written or judged when it ended stays so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_elastic import Decision, Observation, PoolPolicy, Verdict, evaluate, record
from flint_ops.logging import get_logger
from flint_registry.scaling.policies import PoolKey
from flint_store import scaling
from flint_store.errors import StoreUnavailable

__all__ = ["ACTIONS", "Ledger"]

_Action = fleet_pb2.ScalingDecision.Action
_Verdict = fleet_pb2.ScalingDecision.Verdict

ACTIONS: Final = {
    "up": _Action.ACTION_START,
    "down": _Action.ACTION_END,
    "none": _Action.ACTION_HOLD,
}
_VERDICTS: Final = {
    "good": _Verdict.VERDICT_RIGHT,
    "too few": _Verdict.VERDICT_TOO_FEW,
    "too many": _Verdict.VERDICT_TOO_MANY,
    "idle": _Verdict.VERDICT_IDLE,
}
_EVERY_S: Final = 60.0
_SAMPLES: Final = 30
_MOST_UNWRITTEN: Final = 1_000
_MOST_UNJUDGED: Final = 10_000
_RETRY_S: Final = 2.0
_MOST_JUDGED_AT_ONCE: Final = 100
_MOST_INPUTS: Final = 16_384

_log = get_logger("flint_registry.ledger")


@dataclass(slots=True)
class _Unwritten:
    key: PoolKey
    policy: PoolPolicy
    decision: Decision
    workers: int
    acts: bool
    failure: str


@dataclass(slots=True)
class _Unjudged:
    number: int
    key: PoolKey
    policy: PoolPolicy
    decision: Decision


class Ledger:
    """Used from one event loop."""

    def __init__(self, engine: AsyncEngine, evaluate_s: float, kept_days: int) -> None:
        self._engine = engine
        self._evaluate_s = evaluate_s
        self._kept = timedelta(days=kept_days)
        self._unwritten: deque[_Unwritten] = deque()
        self._news = asyncio.Event()
        self._unjudged: deque[_Unjudged] = deque()
        self._seen: dict[PoolKey, deque[Observation]] = {}
        self._last: dict[PoolKey, tuple[float, int]] = {}  # when and what was written last

    def observe(self, key: PoolKey, observation: Observation) -> None:
        """Keeps some observations of the time over which decisions are judged."""
        seen = self._seen.setdefault(key, deque())
        if seen and observation.at - seen[-1].at < self._evaluate_s / _SAMPLES:
            return
        seen.append(observation)
        while seen and observation.at - seen[0].at > self._evaluate_s * 1.5:
            seen.popleft()

    def write(
        self,
        key: PoolKey,
        policy: PoolPolicy,
        decision: Decision,
        observation: Observation,
        *,
        acts: bool,
        failure: str,
    ) -> None:
        """Has a decision written down, if it is worth a line. `acts`: whether it changes something."""
        last = self._last.get(key)
        changed = last is None or last[1] != decision.wanted
        works = observation.waiting > 0 or observation.running > 0
        due = last is None or decision.at - last[0] >= _EVERY_S
        if policy.shadow or failure:
            # What is not carried out is decided again at every look.
            acts = acts and (changed or due)
        if not (acts or (changed and (last is not None or works)) or (works and due)):
            return
        self._last[key] = (decision.at, decision.wanted)
        self._unwritten.append(_Unwritten(key, policy, decision, len(observation.workers), acts, failure))
        if len(self._unwritten) > _MOST_UNWRITTEN:
            dropped = self._unwritten.popleft()
            _log.warning("decision_dropped", pool=dropped.key[1], wanted=dropped.decision.wanted)
        self._news.set()

    async def run(self) -> None:
        """Writes, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._unwritten:
                try:
                    await self._store(self._unwritten[0])
                except StoreUnavailable as error:
                    _log.warning("decisions_not_written", decisions=len(self._unwritten), error=str(error))
                    await asyncio.sleep(_RETRY_S)
                    continue
                self._unwritten.popleft()

    async def _store(self, entry: _Unwritten) -> None:
        region, pool = entry.key
        decision = entry.decision
        number = await scaling.add_decision(
            self._engine,
            region,
            pool,
            datetime.fromtimestamp(decision.at, UTC),
            action=ACTIONS[decision.action if entry.acts else "none"],
            workers=entry.workers,
            wanted=decision.wanted,
            shadow=entry.policy.shadow,
            reason=decision.why,
            inputs=_inputs(decision),
            failure=entry.failure,
        )
        self._unjudged.append(_Unjudged(number, entry.key, entry.policy, decision))
        if len(self._unjudged) > _MOST_UNJUDGED:
            self._unjudged.popleft()

    async def judge(self, at: float) -> None:
        """Judges decisions whose time has come. Raises StoreUnavailable; what was not judged is, the next time."""
        for _ in range(_MOST_JUDGED_AT_ONCE):
            if not self._unjudged or at - self._unjudged[0].decision.at < self._evaluate_s:
                return
            entry = self._unjudged[0]
            verdict = evaluate(entry.policy, entry.decision, self._after(entry.key, entry.decision.at))
            await scaling.judge_decision(self._engine, entry.number, *_judged(verdict))
            self._unjudged.popleft()

    async def prune(self) -> None:
        """Deletes what is older than is kept. Raises StoreUnavailable."""
        before = datetime.now(UTC) - self._kept
        while await scaling.prune_decisions(self._engine, before) >= 1_000:
            pass

    def _after(self, key: PoolKey, at: float) -> Sequence[Observation]:
        return [seen for seen in self._seen.get(key, ()) if at < seen.at <= at + self._evaluate_s]


def _inputs(decision: Decision) -> bytes:
    entry = record(decision)
    data = orjson.dumps(entry)
    if len(data) > _MOST_INPUTS:
        # Names of workers are what grows; how many there were stays.
        data = orjson.dumps(entry | {name: len(entry[name]) for name in ("revive", "drain", "end")})
    return data if len(data) <= _MOST_INPUTS else b"{}"


def _judged(verdict: Verdict) -> tuple[_Verdict.ValueType, bytes]:
    return _VERDICTS.get(verdict.rating, _Verdict.VERDICT_RIGHT), orjson.dumps(verdict.to_json())
