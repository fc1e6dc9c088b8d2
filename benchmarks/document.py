"""What rounds measured, as tables and plots in a document: between two marks of it, so that the rest stays as it is."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from figures import Figures, Record
from report import CONTEST, FLINT, number, ratios, shown, titles
from targets import verdicts

__all__ = ["BEGIN", "END", "written"]

BEGIN, END = "<!-- figures of make bench: begin -->", "<!-- figures of make bench: end -->"
_OWN, _OTHERS = "#d9480f", "#868e96"
_PLOTS: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "bench-w1": (
        "W1: runs of one step a second (more is better)",
        "W1: runs of one step a second, one by one by 128 callers and in hundreds, by engine",
        (("w1", "one by one, 128 callers"), ("w1_batch", "in hundreds, or as many at once as it takes")),
    ),
    "bench-w2": (
        "W2: steps a second in runs of ten steps (more is better)",
        "W2: steps a second in runs of ten steps, 50 and 500 at a time and in hundreds, by engine",
        (("w2_50", "50 runs at a time"), ("w2_500", "500 runs at a time"), ("w2_batch", "in hundreds")),
    ),
    "bench-latency": (
        "One run at a time, milliseconds (less is better)",
        "Milliseconds of a run of ten steps alone and from start to the begin of its step, by engine",
        (
            ("ten_ms", "W2: ten steps, median"),
            ("ten_p99", "W2: ten steps, p99"),
            ("begin_ms", "W4: start → step begins, median"),
            ("begin_p99", "W4: start → step begins, p99"),
        ),
    ),
}
"""Of each picture: its title, what it shows in words, and its figures with what they are called in it."""


def written(record: Record, document: Path) -> None:
    """Replace what is between the marks; the pictures go into `images` beside the document.

    Raises ValueError when the document has no such marks.
    """
    text = document.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{document} needs a line {BEGIN!r} and, after it, a line {END!r}")
    images = document.parent / "images"
    images.mkdir(exist_ok=True)
    drawn = [name for name in _PLOTS if _plot(record.figures, name, images / f"{name}.svg")]
    head, rest = text.split(BEGIN)
    parts = [BEGIN, _section(record, drawn), END]
    document.write_text(head + "\n\n".join(parts) + rest.split(END)[1])


def _section(record: Record, drawn: Sequence[str]) -> str:
    figures = record.figures
    rivals = [engine for engine in figures.engines() if engine != "Flint"]
    whole = sum(each.over for each in figures.rounds)
    asked = f"--rounds {len(figures.rounds)} --size {record.what['size']:g} --rivals {record.what['rivals']}"
    parts = [
        f"All figures of this section: `python benchmarks/bench.py {asked}` (`make bench` with its "
        f"usual options); {whole} whole rounds, medians with the smallest and the largest. {_rounds(record)} "
        "Tables and pictures: `make bench-document`.",
        "**Flint and what is underneath it**",
        _table(("workload", "median (range)", "target", "of a raw limit"), _flint(figures)),
    ]
    budgets = figures.rounds[-1].budgets if figures.rounds else {}
    if budgets:
        parts += ["**What a run costs** (the last round)", _table(("per run", *budgets), _costs(record))]
    parts += [f"![{_PLOTS[name][1]}](images/{name}.svg)" for name in drawn]
    if rivals:
        parts += [
            "**Flint beside other engines** (×: how many times better Flint is, the median of the rounds' ratios)",
            _table(("workload", "Flint", *rivals), _contest(figures, rivals)),
            "**Targets** (ratios are of figures of the same round)",
            _table(("target", "", "rounds", "verdict"), _verdicts(figures)),
            "How the others were set up: "
            + " ".join(f"**{rival}**: {settings}." for rival, settings in record.settings.items()),
        ]
    if record.absent:
        parts.append("Not measured: " + " ".join(f"{rival}: {why}." for rival, why in record.absent.items()))
    notes = [note for each in figures.rounds for note in each.notes]
    if notes:
        parts.append("Left out: " + "; ".join(dict.fromkeys(notes)) + ".")
    return "\n\n".join(parts)


def _rounds(record: Record) -> str:
    what = record.what
    rounds = ", ".join(f"{each.began} (load at its end {each.load:g})" for each in record.figures.rounds)
    return f"{what['machine']}, Python {what['python']}, version {what['version']}; rounds: {rounds}."


def _flint(figures: Figures) -> Iterable[Sequence[str]]:
    for name, title, target, raw in FLINT:
        if figures.of("Flint", name):
            share = ""
            if raw and figures.of("Flint", raw):
                share = f"{figures.median('Flint', name) / figures.median('Flint', raw):.2f} of {titles()[raw]}"
            yield title, shown(figures, "Flint", name), target, share


def _costs(record: Record) -> Iterable[Sequence[str]]:
    budgets = record.figures.rounds[-1].budgets.values()
    processes = dict.fromkeys(process for budget in budgets for process in budget["cpu_us"])
    for process in processes:
        yield f"{process}, CPU µs", *(f"{budget['cpu_us'].get(process, 0):.0f}" for budget in budgets)
    yield "all processes, CPU µs", *(f"{sum(budget['cpu_us'].values()):.0f}" for budget in budgets)
    yield "transactions of PostgreSQL", *(f"{budget['commits']:.2f}" for budget in budgets)
    yield "write-ahead log, bytes", *(f"{budget['wal_bytes']:,.0f}" for budget in budgets)
    yield "messages stored by JetStream", *(f"{budget['messages']:.2f}" for budget in budgets)
    yield "bytes stored by JetStream", *(f"{budget['message_bytes']:,.0f}" for budget in budgets)


def _contest(figures: Figures, rivals: Sequence[str]) -> Iterable[Sequence[str]]:
    for name, more in CONTEST:
        if not figures.of("Flint", name):
            continue
        cells = []
        for rival in rivals:
            found = ratios(figures, name, rival, more)
            cells.append(f"{shown(figures, rival, name)}, × {number(statistics.median(found))}" if found else "–")
        yield titles()[name], shown(figures, "Flint", name), *cells


def _verdicts(figures: Figures) -> Iterable[Sequence[str]]:
    for verdict in verdicts(figures.rounds):
        values = ", ".join(f"{value:.3g}" for value in verdict.values)
        yield verdict.target.title, verdict.target.text, values, verdict.text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _plot(figures: Figures, name: str, path: Path) -> bool:
    """One picture: a field for each figure, a bar for each engine; whether there was something to show."""
    title, _, wanted = _PLOTS[name]
    fields = [(figure, label) for figure, label in wanted if figures.of("Flint", figure)]
    if not fields:
        return False
    engines = figures.engines()[::-1]
    picture = Figure(figsize=(3.4 * len(fields) + 1.2, 0.36 * len(engines) + 1.1))
    axes = picture.subplots(1, len(fields), sharey=True, squeeze=False)
    for axis, (figure, label) in zip(axes[0], fields, strict=True):
        largest = max(max(figures.of(engine, figure), default=0.0) for engine in engines)
        for at, engine in enumerate(engines):
            values = figures.of(engine, figure)
            if not values:
                axis.text(0, at, " –", va="center", color=_OTHERS)
                continue
            middle = statistics.median(values)
            spread = [[middle - min(values)], [max(values) - middle]]
            axis.barh(at, middle, xerr=spread, color=_OWN if engine == "Flint" else _OTHERS, error_kw={"lw": 0.8})
            axis.text(max(values) + 0.02 * largest, at, number(middle), va="center", fontsize=8)
        axis.set_title(label, fontsize=9)
        axis.set_yticks(range(len(engines)), engines, fontsize=9)
        axis.set_xlim(0, 1.22 * largest or 1.0)
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    picture.suptitle(title, fontsize=10)
    picture.tight_layout()
    with rc_context({"svg.hashsalt": "flint", "svg.fonttype": "none"}):  # the same figures give the same file
        picture.savefig(path, format="svg", metadata={"Date": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return True
