"""What simulations showed: a table in Markdown, and a drawing. The drawing needs matplotlib, imported when it is asked
for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from flint_elastic.policy import PoolPolicy
from flint_elastic.simulation.bound import Bound
from flint_elastic.simulation.days import Day
from flint_elastic.simulation.engine import Outcome

__all__ = ["Played", "draw", "table"]

_HEADER: Final = (
    "| day | who decides | worker-hours | of the best | wait p50 | p95 | p99 | longest | late | starts | turns |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)
_SHARES: Final = (0.5, 0.95, 0.99, 1.0)
_COLOURS: Final = {
    "Flint": "#c2410c",
    "Flint, no forecast": "#f59e0b",
    "queue length": "#2563eb",
    "utilisation": "#64748b",
    "best possible": "#111827",
}


@dataclass(frozen=True, slots=True)
class Played:
    """One day with all who decided, by name."""

    day: Day
    outcomes: dict[str, Outcome]
    bound: Bound


def table(played: Sequence[Played], policy: PoolPolicy) -> str:
    """Cost against waiting, one row for each day and decider. "Late" is the share of legs beyond the target."""
    text = _HEADER
    for entry in played:
        best_h = entry.bound.worker_s / 3_600
        for name, outcome in entry.outcomes.items():
            hours = outcome.worker_s / 3_600
            text += (
                f"| {entry.day.name} | {name} | {hours:.1f} | {hours / max(best_h, 1e-9):.2f} "
                f"| {' | '.join(_s(outcome.wait(share)) for share in _SHARES)} "
                f"| {outcome.late(policy.target_wait_s):.2%} | {outcome.starts} | {outcome.turns} |\n"
            )
        waits = [_s(entry.bound.wait(share)) for share in _SHARES]
        text += f"| {entry.day.name} | best possible | {best_h:.1f} | 1.00 | {' | '.join(waits)} | | | |\n"
        text += f"| {entry.day.name} | (the work alone) | {entry.bound.work_s / 3_600:.1f} | | | | | | | | |\n"
    return text


def draw(played: Sequence[Played], policy: PoolPolicy, path: str) -> None:
    """The workers of each day over time, and cost against waiting, to a PNG or SVG file by its name.

    Raises ImportError where matplotlib is missing, and OSError.
    """
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "flint", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    )
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, grid = pyplot.subplots(len(played), 2, figsize=(11, 2.1 * len(played)), width_ratios=(3, 1), squeeze=False)
    for (over_time, against), entry in zip(grid, played, strict=True):
        _workers(over_time, entry, policy)
        _costs(against, entry, policy)
    names = [name for name in _COLOURS if name in played[0].outcomes or name == "best possible"]
    handles = [pyplot.Line2D([], [], color=_COLOURS[name], label=name) for name in names]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles), frameon=False)
    grid[-1][0].set_xlabel("hour")
    grid[-1][1].set_xlabel("worker-hours")
    figure.tight_layout(rect=(0, 0, 1, 0.975))
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.endswith(".svg") else {"Software": None})
    pyplot.close(figure)


def _workers(axes: Any, entry: Played, policy: PoolPolicy) -> None:
    for name, outcome in entry.outcomes.items():
        hours = [(sample.at - entry.day.starts_at) / 3_600 for sample in outcome.samples]
        lasting = {"linewidth": 1.4 if name == "Flint" else 0.8, "color": _COLOURS.get(name, "#16a34a")}
        axes.plot(hours, [sample.workers for sample in outcome.samples], **lasting)
    # Means of five minutes: single minutes would hide the others.
    best = entry.bound.workers
    means = [sum(best[at : at + 5]) / len(best[at : at + 5]) for at in range(0, len(best), 5)]
    hours = [at / 12 for at in range(len(means))]
    axes.fill_between(hours, means, color=_COLOURS["best possible"], alpha=0.18, linewidth=0, step="mid")
    axes.set_title(f"{entry.day.name}: {entry.day.about}", loc="left", fontsize=8)
    axes.set_ylabel("workers")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, entry.day.lasts_s / 3_600)


def _costs(axes: Any, entry: Played, policy: PoolPolicy) -> None:
    for name, outcome in entry.outcomes.items():
        axes.plot(outcome.worker_s / 3_600, outcome.wait(0.99), "o", color=_COLOURS.get(name, "#16a34a"))
    axes.plot(entry.bound.worker_s / 3_600, entry.bound.wait(0.99), "*", color=_COLOURS["best possible"])
    axes.axhline(policy.target_wait_s, color="#999999", linewidth=0.6, linestyle=":")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=-0.1)
    axes.set_ylabel("wait p99, s")


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
