"""The tables that show what rounds measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from budget import Budget
from figures import Figures, Record
from targets import verdicts
from workloads import Idle

__all__ = ["CONTEST", "FLINT", "number", "ratios", "show", "shown", "titles"]


def shown(figures: Figures, engine: str, name: str) -> str:
    """Median and range; empty when it was not measured."""
    values = figures.of(engine, name)
    if not values:
        return ""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} … {number(max(values))})"


def number(value: float) -> str:
    """With as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# name, title, target, raw limit for the ratio
FLINT: tuple[tuple[str, str, str, str], ...] = (
    ("commits", "single-row commits/s, 10 connections", "raw", ""),
    ("publish", "JetStream publishes/s, pipelined", "raw", ""),
    ("publish_ms", "JetStream publish, one at a time, ms", "raw", ""),
    ("unary", "gRPC unary calls/s, 100 callers", "raw", ""),
    ("w1", "W1 1-step runs/s, singly, 128 callers", "≥ 1,000", "unary"),
    ("w1_plain", "W1 1-step runs/s, singly, plain gRPC: two calls a run", "", "unary"),
    ("w1_one_call", "W1 1-step runs/s, singly, plain gRPC: one call a run", "", "unary"),
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
    ("fan_100k_s", "W3 100,000 branches with join, s", "< 20", ""),
    ("fan_100k_cpu_s", "W3 100,000 branches, CPU s of all processes", "", ""),
    ("fan_100k_most_mib", "W3 100,000 branches, most that a process grew by, MiB", "", ""),
    ("fan_100k_kept_mib", "W3 100,000 branches, most that a process kept, MiB", "≤ 40", ""),
    ("begin_ms", "W4 start → step begins, idle, ms", "", ""),
    ("begin_p99", "W4 start → step begins, idle, p99, ms", "", ""),
    ("begin_half_ms", "W4 start → step begins, half load, ms", "", ""),
    ("begin_half_p99", "W4 start → step begins, half load, p99, ms", "", ""),
    ("urgent_ms", "W5 urgent run while others queue, ms", "< 20", ""),
    ("urgent_p99", "W5 urgent run while others queue, p99, ms", "", ""),
)
CONTEST: tuple[tuple[str, bool], ...] = (
    ("w1", True),
    ("w1_batch", True),
    ("w1_cpu", False),
    ("w1_batch_cpu", False),
    ("one_ms", False),
    ("one_p99", False),
    ("ten_ms", False),
    ("ten_p99", False),
    ("w2_50", True),
    ("w2", True),
    ("w2_500", True),
    ("w2_batch", True),
    ("w2_cpu", False),
    ("w2_batch_cpu", False),
    ("fan_s", False),
    ("begin_ms", False),
    ("begin_p99", False),
    ("begin_half_ms", False),
    ("begin_half_p99", False),
)
"""Name, and whether more is better."""
_CPU = {
    "w1_cpu": "W1 singly, CPU µs per run, all processes",
    "w1_batch_cpu": "W1 in hundreds, CPU µs per run",
    "w2_cpu": "W2 10 steps singly, CPU µs per run",
    "w2_batch_cpu": "W2 10 steps in hundreds, CPU µs per run",
}


def titles() -> dict[str, str]:
    """What figures are called, by name."""
    return _CPU | {name: title for name, title, _, _ in FLINT}


def show(console: Console, record: Record) -> None:
    """All tables."""
    figures = record.figures
    over = sum(each.over for each in figures.rounds)
    engines = [engine for engine in figures.engines() if engine != "Flint"]
    console.print(", ".join(f"{name}: {value}" for name, value in record.what.items()))
    for at, each in enumerate(figures.rounds, 1):
        took = ", ".join(f"{engine} {seconds:.0f} s" for engine, seconds in each.took_s.items())
        console.print(
            f"round {at}, {each.began}{'' if each.over else ' (not over)'}: {took}; load at its end {each.load:.1f}"
        )
        for note in each.notes:
            console.print(f"[red]  {note}", highlight=False)
    _show_flint(console, figures)
    if figures.rounds and figures.rounds[-1].budgets:
        _show_budgets(console, {title: Budget(**held) for title, held in figures.rounds[-1].budgets.items()})
    if record.idle:
        _show_idle(console, Idle(**record.idle))
    if engines:
        _show_contest(console, figures, engines)
        _show_verdicts(console, figures)
    for rival, settings in record.settings.items():
        console.print(f"{rival}: {settings}")
    for rival, why in record.absent.items():
        console.print(f"[red]left out: {rival}: {why}")
    if over < len(figures.rounds):
        console.print("[red]The last round is not over.")


def _show_flint(console: Console, figures: Figures) -> None:
    """Flint beside what is underneath it."""
    table = Table("workload", "median (range)", "target", "ratio to a raw limit of this run")
    for name, title, target, raw in FLINT:
        if not figures.of("Flint", name):
            continue
        ratio = ""
        if raw and figures.of("Flint", raw):
            ratio = f"{figures.median('Flint', name) / figures.median('Flint', raw):.2f} of {raw}"
        table.add_row(title, shown(figures, "Flint", name), target, ratio)
    console.print(table)


def _show_budgets(console: Console, budgets: dict[str, Budget]) -> None:
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


def _show_idle(console: Console, idle: Idle) -> None:
    """What it costs to wait."""
    console.print(
        f"idle: {idle.statements_per_s:.2f} statements/s (target < 5), "
        f"{100 * idle.cores:.1f} % of one core (target < 5 %): "
        + ", ".join(f"{n} {100 * c:.2f} %" for n, c in sorted(idle.by_process.items(), key=lambda i: -i[1]))
    )


def _show_contest(console: Console, figures: Figures, rivals: Sequence[str]) -> None:
    """Flint beside the others: median (range), and how many times better Flint is, round by round."""
    table = Table("workload", "Flint", *rivals, title="Flint beside others; ×: how many times better, by rounds")
    for name, more in CONTEST:
        if not figures.of("Flint", name):
            continue
        cells = []
        for rival in rivals:
            found = ratios(figures, name, rival, more)
            times = " ".join(f"{ratio:.2g}" for ratio in found)
            cells.append(f"{shown(figures, rival, name)}\n× {times}" if found else "–")
        table.add_row(titles().get(name, name), shown(figures, "Flint", name), *cells)
    console.print(table)


def ratios(figures: Figures, name: str, rival: str, more: bool) -> list[float]:
    """How many times better Flint is, for each round that has both."""
    pairs = ((each.values.get("Flint", {}).get(name), each.values.get(rival, {}).get(name)) for each in figures.rounds)
    return [own / theirs if more else theirs / own for own, theirs in pairs if own and theirs]


def _show_verdicts(console: Console, figures: Figures) -> None:
    table = Table("target", "", "rounds", "", title="Targets; ratios are of figures of the same round")
    for verdict in verdicts(figures.rounds):
        colour = {True: "green", False: "red", None: "dim"}[verdict.met]
        values = "  ".join(f"{value:.3g}" for value in verdict.values)
        table.add_row(verdict.target.title, verdict.target.text, values, f"[{colour}]{verdict.text}[/{colour}]")
    console.print(table)
