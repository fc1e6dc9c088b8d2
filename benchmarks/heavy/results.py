"""Results of workloads: kept in one JSON file from run to run, and shown as tables."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from heavy.verdicts import Verdict

__all__ = ["Outcome", "Results"]


@dataclass
class Outcome:
    """What a workload found. `options`: what it was asked for; `series`: further figures, as JSON."""

    options: dict[str, Any]
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)
    took_s: float = 0.0
    failed: str = ""
    """Why it could not be measured to its end; empty when it was."""

    def add(self, *verdicts: Verdict) -> None:
        """More figures."""
        self.verdicts += verdicts

    def note(self, text: str) -> None:
        """Something that a reader of the figures must know."""
        self.notes.append(text)


class Results:
    """The file. Each workload's outcome is written as soon as it is there, and stays until it is measured again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[str, Any] = {}
        if path.exists():
            self._held = json.loads(path.read_text())

    def has(self, workload: str, options: dict[str, Any]) -> bool:
        """Whether it was measured to its end with these options."""
        held = self._held.get(workload)
        return held is not None and not held["failed"] and held["options"] == options

    def put(self, workload: str, outcome: Outcome, when: str) -> None:
        """Write it down, in place of what was known of this workload."""
        machine = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load": round(os.getloadavg()[0], 1),
        }
        self._held[workload] = asdict(outcome) | {"measured": when, "machine": machine}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(self._held, indent=1))
        fresh.replace(self._path)

    def show(self, console: Console, workloads: Sequence[str]) -> bool:
        """The tables of these workloads; whether all targets that were measured are met, and nothing failed."""
        good = True
        for workload in workloads:
            held = self._held.get(workload)
            if held is None:
                continue
            machine = held["machine"]
            table = Table("figure", "value", "target", "", title=f"{workload.upper()}, {held['measured']}")
            table.caption = (
                f"{machine['machine']}, {machine['cores']} cores, Python {machine['python']}, load at the end "
                f"{machine['load']}; took {held['took_s']:.0f} s; {_options(held['options'])}"
            )
            for verdict in held["verdicts"]:
                table.add_row(
                    verdict["name"] + (f"\n[dim]{verdict['note']}[/dim]" if verdict["note"] else ""),
                    "not measured" if verdict["value"] is None else f"{_number(verdict['value'])} {verdict['unit']}",
                    verdict["target"],
                    {True: "[green]met[/green]", False: "[red]missed[/red]", None: ""}[verdict["met"]],
                )
                good = good and verdict["met"] is not False
            console.print(table)
            for note in held["notes"]:
                console.print(f"  {note}", highlight=False)
            if held["failed"]:
                console.print(f"[bold red]  not measured to its end: {held['failed']}")
                good = False
        return good


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
