"""The daily and weekly pattern of a pool's arrivals: counted, kept in the record, learned in a process of its own.

States of one pool: **counting** → each five minutes a stretch is finished: the trust in the forecast is adjusted → each
quarter of an hour kept in PostgreSQL → each six hours, from one day of history on, **learning**: a process of its own
(`flint_elastic.training`) makes the next forecast. When that fails the forecast that there is runs out; when the leader
dies at most a quarter of an hour of counts is lost.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_elastic import BUCKET_S, NO_FORECAST, ArrivalHistory, Forecast
from flint_elastic.history import DAY
from flint_elastic.tracking import LOOK_AHEAD, Tracker
from flint_elastic.training import Training
from flint_ops.logging import get_logger
from flint_registry.scaling.policies import PoolKey
from flint_store import scaling

__all__ = ["Patterns"]

_KEEP_EVERY_S: Final = 900.0
_LEARN_EVERY_S: Final = 6 * 3600.0
_LEARN_AGAIN_S: Final = 1800.0
_LEARN_TIMEOUT_S: Final = 300.0
_MOST_ANSWER: Final = 4 * 2**20
_NICENESS: Final = 10

_log = get_logger("flint_registry.patterns")


@dataclass(slots=True)
class _Pattern:
    history: ArrivalHistory = field(default_factory=ArrivalHistory)
    training: Training = field(default_factory=lambda: Training(NO_FORECAST, Tracker()))
    counted_at: float | None = None
    finished: int = 0
    kept_at: float = 0.0
    learn_at: float = 0.0
    news: bool = False


class Patterns:
    """Used from one event loop."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._patterns: dict[PoolKey, _Pattern] = {}

    def count(self, key: PoolKey, at: float, per_s: float, learned: Mapping[str, Any] | None) -> Forecast:
        """Takes over the rate of arrivals at a moment; the forecast in force. `learned`: what the record holds."""
        pattern = self._patterns.get(key)
        if pattern is None:
            pattern = self._patterns[key] = _read(learned)
            pattern.kept_at = at
            pattern.learn_at = max(pattern.learn_at, at + BUCKET_S)
        if pattern.counted_at is not None:
            span_s = min(BUCKET_S, max(0.0, at - pattern.counted_at))
            pattern.history.add(at, per_s * span_s)
            pattern.news = pattern.news or per_s > 0
        pattern.counted_at = at
        self._follow(pattern)
        return pattern.training.forecast

    async def keep(self, at: float, *, all_: bool = False) -> None:
        """Writes down what is due. Raises StoreUnavailable; then it is due again."""
        for (region, pool), pattern in self._patterns.items():
            if not pattern.news or not (all_ or at - pattern.kept_at >= _KEEP_EVERY_S):
                continue
            learned = {"history": pattern.history.to_json(), "training": pattern.training.to_json()}
            await scaling.keep_learned(self._engine, region, pool, learned)
            pattern.kept_at, pattern.news = at, False

    async def learn(self, at: float) -> None:
        """Learns for one pool whose time has come, for as long as that takes."""
        for key, pattern in self._patterns.items():
            if at < pattern.learn_at or len(pattern.history) < DAY:
                continue
            pattern.learn_at = at + _LEARN_AGAIN_S
            training = await _train(pattern.history)
            if training is not None:
                pattern.training, pattern.learn_at, pattern.news = training, at + _LEARN_EVERY_S, True
                _log.info("pattern_learned", pool=key[1], trust=round(training.forecast.trust, 3))
            return

    @staticmethod
    def _follow(pattern: _Pattern) -> None:
        """With each finished stretch the trust is adjusted by what came."""
        finished = len(pattern.history)
        if finished <= pattern.finished or finished <= LOOK_AHEAD:
            pattern.finished = finished
            return
        pattern.finished = finished
        training = pattern.training
        if not training.forecast.rates:
            return
        rates = pattern.history.rates()
        tracker = training.tracker.observe(
            training.forecast, rates[-1 - LOOK_AHEAD], rates[-1], pattern.history.ends_at
        )
        pattern.training = Training(tracker.weighed(training.forecast), tracker, training.errors)


def _read(learned: Mapping[str, Any] | None) -> _Pattern:
    pattern = _Pattern()
    if learned is None:
        return pattern
    try:
        pattern.history = ArrivalHistory.from_json(learned["history"])
        pattern.training = Training.from_json(learned["training"])
    except (KeyError, TypeError, ValueError) as error:
        _log.error("learned_unreadable", error=repr(error))
        return _Pattern()
    pattern.finished = len(pattern.history)
    return pattern


async def _train(history: ArrivalHistory) -> Training | None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "flint_elastic.training",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},
    )
    try:
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
        async with asyncio.timeout(_LEARN_TIMEOUT_S):
            answer, said = await process.communicate(orjson.dumps(history.to_json()))
        if process.returncode or len(answer) > _MOST_ANSWER:
            _log.warning("pattern_not_learned", code=process.returncode, said=said[-500:].decode(errors="replace"))
            return None
        return Training.from_json(orjson.loads(answer))
    except (TimeoutError, OSError, KeyError, TypeError, ValueError) as error:
        _log.warning("pattern_not_learned", error=repr(error))
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
