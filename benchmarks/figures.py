"""Figures of rounds, by engine and name, and the file that keeps them when a run is interrupted."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Figures", "Record", "Round"]


@dataclass
class Round:
    """What one round measured. `values`: by engine and name; `budgets`: of Flint's workloads, by title."""

    began: str
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    budgets: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""
    took_s: dict[str, float] = field(default_factory=dict)
    """By engine."""
    load: float = 0.0
    """Of the machine, when the round was over."""
    over: bool = False


class Figures:
    """Rounds, the last of which may be under way."""

    def __init__(self, rounds: list[Round] | None = None) -> None:
        self.rounds = rounds if rounds is not None else []

    def add(self, engine: str, name: str, value: float) -> None:
        """A figure of the round under way."""
        self.rounds[-1].values.setdefault(engine, {})[name] = value

    def now(self, engine: str, name: str) -> float | None:
        """That of the round under way, if it was measured."""
        return self.rounds[-1].values.get(engine, {}).get(name)

    def of(self, engine: str, name: str) -> list[float]:
        """All rounds' values; empty when it was not measured."""
        return [found for each in self.rounds if (found := each.values.get(engine, {}).get(name)) is not None]

    def engines(self) -> list[str]:
        """All that were measured, in the order of their turns."""
        return list(dict.fromkeys(engine for each in self.rounds for engine in each.values))

    def median(self, engine: str, name: str) -> float:
        """The median round's."""
        return statistics.median(self.of(engine, name))


@dataclass
class Record:
    """The file: rounds, of what, and what held for all of them. `save` writes it whole, in one step."""

    path: Path
    what: dict[str, Any]
    """What was measured (options, version of the code, machine): rounds of one file are all of the same."""
    figures: Figures = field(default_factory=Figures)
    idle: dict[str, Any] | None = None
    settings: dict[str, str] = field(default_factory=dict)
    """How each rival was set up, by name."""
    absent: dict[str, str] = field(default_factory=dict)
    """Rivals that were not measured, and why."""

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """What is in the file; None when there is none."""
        if not path.exists():
            return None
        held = json.loads(path.read_text())
        rounds = Figures([Round(**each) for each in held.pop("rounds")])
        return cls(path, held["what"], rounds, held["idle"], held["settings"], held["absent"])

    @classmethod
    def opened(cls, path: Path, what: dict[str, Any]) -> Record:
        """The one to go on with: the rounds in the file that are over when they are of the same, else none.

        Rounds of something else are put aside, into a file beside it.
        """
        held = cls.read(path)
        if held is None:
            return cls(path, what)
        if held.what != what:
            path.replace(path.with_suffix(".before.json"))
            return cls(path, what)
        held.figures.rounds = [each for each in held.figures.rounds if each.over]
        return held

    def save(self) -> None:
        """Write it down."""
        held = {
            "what": self.what,
            "idle": self.idle,
            "settings": self.settings,
            "absent": self.absent,
            "rounds": [asdict(each) for each in self.figures.rounds],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(held, indent=1))
        fresh.replace(self.path)
