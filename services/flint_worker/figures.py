"""What this process executed so far, for its heartbeats: legs, and calls by function. Counted within the event loop."""

from __future__ import annotations

from flint_contracts.gen.flint.registry.v1 import registry_pb2

__all__ = ["FIGURES", "BeatFigures", "Figures"]

_MOST_FUNCTIONS = 64


class Figures:
    """Sums since the process began. Adding costs next to nothing."""

    __slots__ = ("calls", "leg_s", "leg_s_squared", "legs")

    def __init__(self) -> None:
        self.legs = 0
        self.leg_s = 0.0
        self.leg_s_squared = 0.0
        self.calls: dict[str, list[int]] = {}
        """By function: calls, errors, milliseconds."""

    def add_leg(self, seconds: float) -> None:
        """A leg ended that held a slot for so long."""
        self.legs += 1
        self.leg_s += seconds
        self.leg_s_squared += seconds * seconds

    def add_call(self, function: str, duration_ms: int, *, failed: bool) -> None:
        """A call ended. Beyond 64 functions the others are not counted."""
        sums = self.calls.get(function)
        if sums is None:
            if len(self.calls) >= _MOST_FUNCTIONS:
                return
            sums = self.calls[function] = [0, 0, 0]
        sums[0] += 1
        sums[1] += failed
        sums[2] += duration_ms


FIGURES = Figures()
"""Those of this process."""


class BeatFigures:
    """The figures of one incarnation: what was added since it began."""

    def __init__(self, figures: Figures = FIGURES) -> None:
        self._figures = figures
        self._legs = (figures.legs, figures.leg_s, figures.leg_s_squared)
        self._calls = {function: tuple(sums) for function, sums in figures.calls.items()}
        self._unsaid: dict[str, int] = {function: sums[0] for function, sums in self._calls.items()}

    def fill(self, beat: registry_pb2.Beat) -> None:
        """Puts them into a beat: functions only where they changed since the last one that was filled."""
        legs, leg_s, squared = self._legs
        beat.legs_ended = self._figures.legs - legs
        beat.leg_s = self._figures.leg_s - leg_s
        beat.leg_s_squared = self._figures.leg_s_squared - squared
        for function, (calls, errors, duration_ms) in self._figures.calls.items():
            if self._unsaid.get(function) == calls:
                continue
            self._unsaid[function] = calls
            before = self._calls.get(function, (0, 0, 0))
            beat.functions.add(
                function=function,
                calls=calls - before[0],
                errors=errors - before[1],
                duration_ms=duration_ms - before[2],
            )

    def unsaid(self) -> None:
        """The last beat did not arrive: everything is told again with the next one."""
        self._unsaid.clear()
