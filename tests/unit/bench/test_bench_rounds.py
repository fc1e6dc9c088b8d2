"""What rounds measured: kept from run to run, judged round by round, and written into a document."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from rich.console import Console

from document import BEGIN, END, written
from figures import Figures, Record, Round
from report import show
from targets import SERVICES, TARGETS, WORKFLOWS, verdicts


def a_round(flint: float, restate: float | None, over: bool = True) -> Round:
    """W1 of Flint and, where it was measured, of Restate."""
    values = {"Flint": {"w1": flint, "w1_cpu": 900.0, "unary": 5000.0, "ten_ms": 8.0, "urgent_ms": 19.0}}
    if restate is not None:
        values[WORKFLOWS] = {"w1": restate, "w1_cpu": 1900.0, "ten_ms": 12.0}
    budgets = {
        "1 step, singly": {
            "cpu_us": {"worker": 400.0, "client": 500.0},
            "commits": 0.1,
            "wal_bytes": 2000.0,
            "messages": 2.0,
            "message_bytes": 800.0,
        }
    }
    return Round("2026-11-23 04:00 UTC", values, budgets, took_s={"Flint": 60.0}, load=1.5, over=over)


def a_record(path: Path, *rounds: Round) -> Record:
    what = {"machine": "some", "python": "3.11", "version": "abc", "size": 1.0, "rivals": "all"}
    return Record(path, what, Figures(list(rounds)), settings={WORKFLOWS: "its defaults"}, absent={"Other": "not here"})


def test_a_record_goes_on_with_the_rounds_that_are_over(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "bench.json"
    record = a_record(path, a_round(2500, 1000), a_round(2600, 1000, over=False))
    record.save()
    again = Record.opened(path, record.what)
    assert again.figures.rounds == record.figures.rounds[:1]
    assert again.settings == record.settings
    assert again.absent == record.absent
    shown = Record.read(path)
    assert shown is not None
    assert shown.figures.rounds == record.figures.rounds


def test_rounds_of_something_else_are_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    record = a_record(path, a_round(2500, 1000))
    record.save()
    other = Record.opened(path, record.what | {"version": "def"})
    assert other.figures.rounds == []
    assert not path.exists()
    aside = Record.read(tmp_path / "bench.before.json")
    assert aside is not None
    assert aside.figures.rounds == record.figures.rounds
    assert Record.read(path) is None


def test_a_target_holds_in_the_rounds_in_which_it_holds() -> None:
    found = {verdict.target.title: verdict for verdict in verdicts([a_round(2500, 1000), a_round(2400, 1000)])}
    singly = found[f"W1 runs/s, one by one, of {WORKFLOWS}"]
    assert singly.values == (2.5, 2.4)
    assert (singly.held, singly.met, singly.text) == (1, False, "missed: holds in 1 of 2")
    shorter = found[f"W2 ten steps alone, median, of {WORKFLOWS}"]
    assert shorter.met is True
    assert shorter.text == "met: holds in 2 of 2"
    assert found[f"W1 runs/s, one by one, of {SERVICES}"].text == "not measured"
    urgent = found["W5 urgent run while 10,000 queue, median"]
    assert (urgent.values, urgent.met) == ((19.0, 19.0), True)


def test_a_target_that_one_round_lacks_is_not_met() -> None:
    [singly] = [
        verdict
        for verdict in verdicts([a_round(2500, 1000), a_round(2500, None)])
        if verdict.target.title == f"W1 runs/s, one by one, of {WORKFLOWS}"
    ]
    assert (singly.values, singly.met) == ((2.5,), False)


def test_targets_have_names_of_their_own() -> None:
    titles = [target.title for target in TARGETS]
    assert len(set(titles)) == len(titles)


def test_figures_are_of_the_round_under_way() -> None:
    figures = Figures([a_round(2500, 1000)])
    figures.rounds.append(Round("later"))
    assert figures.now("Flint", "w1") is None
    figures.add("Flint", "w1", 2600.0)
    assert figures.now("Flint", "w1") == 2600.0
    assert figures.of("Flint", "w1") == [2500, 2600.0]
    assert figures.median("Flint", "w1") == 2550.0
    assert figures.engines() == ["Flint", WORKFLOWS]
    assert figures.of(WORKFLOWS, "w1") == [1000]


def test_all_that_was_measured_is_shown(tmp_path: Path) -> None:
    record = a_record(tmp_path / "bench.json", a_round(2500, 1000), a_round(2600, 1000, over=False))
    record.idle = {"statements_per_s": 3.0, "cores": 0.04, "by_process": {"nats": 0.01}}
    record.figures.rounds[0].notes.append("Other: fell over")
    with (tmp_path / "out").open("w") as out:
        show(Console(width=200, file=out), record)
    text = (tmp_path / "out").read_text()
    for words in ("2,550 (2,500 … 2,600)", "× 2.5 2.6", "holds in 2 of 2", "3.00 statements/s", "Other: fell over"):
        assert words in text
    assert "not over" in text


def test_a_document_gets_tables_and_pictures_between_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"# Title\n\n{BEGIN}\nformer\n{END}\n\nThe end.\n")
    record = a_record(tmp_path / "bench.json", a_round(2500, 1000), a_round(2600, 1000))
    written(record, document)
    text = document.read_text()
    assert text.startswith(f"# Title\n\n{BEGIN}\n\n")
    assert text.endswith(f"{END}\n\nThe end.\n")
    assert "former" not in text
    assert "| W1 1-step runs/s, singly, 128 callers | 2,550 (2,500 … 2,600) | 1,000 (1,000 … 1,000), × 2.55 |" in text
    assert "missed: holds in 0 of 2" not in text
    assert "met: holds in 2 of 2" in text
    for name in ("bench-w1", "bench-latency"):
        assert f"(images/{name}.svg)" in text
        assert (tmp_path / "images" / f"{name}.svg").read_text().startswith("<?xml")
    assert "bench-w2.svg" not in text  # nothing to draw
    before = (tmp_path / "images" / "bench-w1.svg").read_text()
    written(record, document)
    assert document.read_text() == text
    assert (tmp_path / "images" / "bench-w1.svg").read_text() == before


def test_a_document_without_marks_stays_as_it_is(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"{END}\n{BEGIN}\n")
    with pytest.raises(ValueError, match="needs a line"):
        written(a_record(tmp_path / "bench.json", a_round(2500, 1000)), document)
    assert document.read_text() == f"{END}\n{BEGIN}\n"
