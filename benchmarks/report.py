"""Figures of a run and the tables that show them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from budget import Budget
from rivals.harness import Rival
from workloads import Idle

__all__ = ["Figures", "show_budgets", "show_contest", "show_flint", "show_idle"]


class Figures:
    """Values by engine and name, one for each round."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = {}

    def add(self, engine: str, name: str, value: float) -> None:
        """One more round's."""
        self._values.setdefault((engine, name), []).append(value)

    def of(self, engine: str, name: str) -> list[float]:
        """All of them; empty when it was not measured."""
        return self._values.get((engine, name), [])

    def median(self, engine: str, name: str) -> float:
        """The median round's."""
        return statistics.median(self._values[engine, name])

    def shown(self, engine: str, name: str) -> str:
        """Median and range."""
        values = self.of(engine, name)
        if not values:
            return ""
        middle = _number(statistics.median(values))
        return middle if len(values) == 1 else f"{middle} ({_number(min(values))} … {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# name, title, target, raw limit for the ratio
_FLINT: tuple[tuple[str, str, str, str], ...] = (
    ("commits", "single-row commits/s, 10 connections", "raw", ""),
    ("publish", "JetStream publishes/s, pipelined", "raw", ""),
    ("publish_ms", "JetStream publish, one at a time, ms", "raw", ""),
    ("unary", "gRPC unary calls/s, 100 callers", "raw", ""),
    ("w1", "W1 1-step runs/s, singly, 128 callers", "≥ 1,000", "unary"),
    ("w1_plain", "W1 1-step runs/s, singly, plain gRPC: two calls a run", "", "unary"),
    ("w1_batch", "W1 1-step runs/s, in hundreds", "≥ 4,000", "commits"),
    ("one_ms", "1-step run alone, ms", "", "publish_ms"),
    ("one_p99", "1-step run alone, p99, ms", "", ""),
    ("ten_ms", "W2 10-step run alone, ms", "≤ 12", "publish_ms"),
    ("ten_p99", "W2 10-step run alone, p99, ms", "", ""),
    ("w2", "W2 steps/s, singly, 128 callers", "≥ 8,000", "publish"),
    ("w2_50", "W2 steps/s, 50 runs at a time", "", "publish"),
    ("w2_500", "W2 steps/s, 500 runs at a time", "", "publish"),
    ("w2_batch", "W2 steps/s, in hundreds", "", "publish"),
    ("fan_s", "W3 1,000 branches with join, s", "", ""),
    ("begin_ms", "W4 start → step begins, idle, ms", "", ""),
    ("begin_p99", "W4 start → step begins, idle, p99, ms", "", ""),
    ("begin_half_ms", "W4 start → step begins, half load, ms", "", ""),
    ("begin_half_p99", "W4 start → step begins, half load, p99, ms", "", ""),
    ("urgent_ms", "W5 urgent run while others queue, ms", "< 20", ""),
    ("urgent_p99", "W5 urgent run while others queue, p99, ms", "", ""),
)
_CONTEST: tuple[tuple[str, bool], ...] = (
    ("w1", True),
    ("w1_batch", True),
    ("w1_cpu", False),
    ("w1_batch_cpu", False),
    ("one_ms", False),
    ("ten_ms", False),
    ("ten_p99", False),
    ("w2", True),
    ("w2_batch", True),
    ("w2_cpu", False),
    ("w2_batch_cpu", False),
    ("fan_s", False),
    ("begin_ms", False),
    ("begin_p99", False),
)
"""Name, and whether more is better."""
_CPU = {
    "w1_cpu": "W1 singly, CPU µs per run, all processes",
    "w1_batch_cpu": "W1 in hundreds, CPU µs per run",
    "w2_cpu": "W2 10 steps singly, CPU µs per run",
    "w2_batch_cpu": "W2 10 steps in hundreds, CPU µs per run",
}


def show_flint(console: Console, figures: Figures) -> None:
    """Flint beside what is underneath it."""
    table = Table("workload", "median (range)", "target", "ratio to a raw limit of this run")
    for name, title, target, raw in _FLINT:
        if not figures.of("Flint", name):
            continue
        ratio = ""
        if raw:
            ratio = f"{figures.median('Flint', name) / figures.median('Flint', raw):.2f} of {raw}"
        table.add_row(title, figures.shown("Flint", name), target, ratio)
    console.print(table)


def show_budgets(console: Console, budgets: dict[str, Budget]) -> None:
    """What a run costs."""
    processes = ("client", "gateway", "scheduler", "worker", "postgres", "nats", "etcd", "registry")
    table = Table("per run", *budgets)
    for process in processes:
        table.add_row(f"{process}, CPU µs", *(f"{budget.cpu_us.get(process, 0):.0f}" for budget in budgets.values()))
    table.add_row("all processes, CPU µs", *(f"{budget.total_us:.0f}" for budget in budgets.values()))
    table.add_row("transactions of PostgreSQL", *(f"{budget.commits:.2f}" for budget in budgets.values()))
    table.add_row("write-ahead log, bytes", *(f"{budget.wal_bytes:,.0f}" for budget in budgets.values()))
    table.add_row("messages stored by JetStream", *(f"{budget.messages:.2f}" for budget in budgets.values()))
    table.add_row("bytes stored by JetStream", *(f"{budget.message_bytes:,.0f}" for budget in budgets.values()))
    console.print(table)


def show_idle(console: Console, idle: Idle) -> None:
    """What it costs to wait."""
    console.print(
        f"idle: {idle.statements_per_s:.2f} statements/s (target < 5), "
        f"{100 * idle.cores:.1f} % of one core (target < 5 %): "
        + ", ".join(f"{n} {100 * c:.2f} %" for n, c in sorted(idle.by_process.items(), key=lambda i: -i[1]))
    )


def show_contest(console: Console, figures: Figures, rivals: Sequence[type[Rival]]) -> None:
    """Flint beside the others: median (range), and how many times better Flint's median is."""
    titles = _CPU | {name: title for name, title, _, _ in _FLINT}
    table = Table("workload", "Flint", *(rival.name for rival in rivals))
    for name, more in _CONTEST:
        if not figures.of("Flint", name):
            continue
        own = figures.median("Flint", name)
        cells = []
        for rival in rivals:
            if not figures.of(rival.name, name):
                cells.append("–")
                continue
            theirs = figures.median(rival.name, name)
            cells.append(f"{figures.shown(rival.name, name)}\n× {own / theirs if more else theirs / own:.1f}")
        table.add_row(titles[name], figures.shown("Flint", name), *cells)
    console.print(table)
    for rival in rivals:
        console.print(f"{rival.name}: {rival.settings}")
