"""Hints: which steps have begun and run for a while, for those who watch. Provisional, fire and forget.

One ticker for all legs, which stands still while there is none; a step is told when it has run for 50 ms, and again
when its function reports progress. When the ticker dies the service ends (it is watched); nothing else depends on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from flint_bus import Bus
from flint_bus.subjects import hints_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_ops.clock import now_ms
from flint_worker.leg import Leg
from flint_worker.records import timestamp

__all__ = ["Hints"]

_TICK_S: Final = 0.05
_SLOW_MS: Final = 50


class Hints:
    """Publishes hints of the legs that `legs` yields. `busy` is set while there are any."""

    def __init__(self, bus: Bus, legs: Callable[[], Iterable[Leg]], busy: asyncio.Event) -> None:
        self._bus = bus
        self._legs = legs
        self._busy = busy

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._busy.wait()
            await asyncio.sleep(_TICK_S)
            if self._bus.connected.is_set():
                before = now_ms() - _SLOW_MS
                for leg in self._legs():
                    if leg.progress:
                        self._tell(leg, before)

    def _tell(self, leg: Leg, before_ms: int) -> None:
        steps = []
        for progress in leg.progress.values():
            if progress.hinted or progress.started_ms > before_ms:
                continue
            progress.hinted = True
            call = progress.call
            steps.append(
                runs_pb2.StepRecord(
                    progress_percent=progress.percent,
                    progress_message=progress.message,
                    step=call.step,
                    iteration=call.iteration,
                    attempt=call.attempt,
                    state=runs_pb2.StepRecord.STATE_RUNNING,
                    kind="call",
                    function=call.function,
                    start_time=timestamp(progress.started_ms),
                    provisional=True,
                )
            )
        if steps:
            self._bus.publish_now(hints_subject(leg.run_id), dispatch_pb2.StepHints(steps=steps).SerializeToString())
