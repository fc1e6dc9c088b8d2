"""What the long benchmarks conclude from what they measured."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from heavy.results import Outcome, Results
from heavy.verdicts import at_least, at_most, full_again, growth, pause, percentile, told


def test_what_is_not_measured_is_neither_met_nor_missed() -> None:
    assert at_most("a", 5.0, 5.0, "s").met is True
    assert at_most("a", 5.1, 5.0, "s").met is False
    assert at_least("a", 0.9, 0.9, "×").met is True
    assert at_least("a", 0.8, 0.9, "×").met is False
    assert at_most("a", None, 5.0, "s").met is None
    assert told("a", 1.0, "s").met is None


def test_growth_leaves_the_first_third_to_warming_up() -> None:
    assert growth([1, 50, 1, 100, 100, 100, 100, 100, 100]) == 1.0
    assert growth([100, 100, 100, 100, 100, 100, 150, 150, 150]) == 1.5
    assert growth([1, 1]) is None
    assert growth([0, 0, 0]) is None


def test_percentile() -> None:
    assert percentile(list(range(100)), 0.95) == 95
    assert percentile([7], 0.99) == 7
    assert percentile([], 0.99) == 0.0


def test_throughput_is_full_again_with_the_first_full_second() -> None:
    steady = [at / 10 for at in range(100)]  # ten a second until 10 s
    assert full_again(steady, 5.0, 10.0) == 0.0
    gap = [at for at in steady if not 5.0 <= at < 7.0]
    found = full_again(gap, 5.0, 10.0)
    assert found is not None
    assert 1.8 <= found <= 2.0
    assert full_again([at for at in steady if at < 5.0], 5.0, 10.0) is None
    assert full_again([], 5.0, 10.0) is None


def test_the_longest_pause_begins_with_the_strike_at_the_earliest() -> None:
    assert pause([1.0, 9.0, 10.0, 10.5], 8.0) == 1.0
    assert pause([1.0], 8.0) is None


def test_results_are_kept_by_workload_and_options(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "results.json"
    results = Results(path)
    results.put("w7", Outcome({"ended": 5}, [at_most("x", 1.0, 2.0, "s")]), "now")
    results.put("w8", Outcome({"ended": 5}, failed="a disk was full"), "now")
    again = Results(path)
    assert again.has("w7", {"ended": 5})
    assert not again.has("w7", {"ended": 6})
    assert not again.has("w8", {"ended": 5})
    assert not again.has("w6", {})


@pytest.mark.parametrize(("value", "good"), [(1.0, True), (3.0, False)])
def test_a_missed_target_is_told(tmp_path: Path, value: float, good: bool) -> None:
    from rich.console import Console

    results = Results(tmp_path / "results.json")
    results.put("w7", Outcome({}, [at_most("x", value, 2.0, "s"), told("y", None, "s")]), "now")
    console = Console(record=True, width=100, quiet=False, file=(tmp_path / "out").open("w"))
    assert results.show(console, ["w6", "w7"]) is good
    console.file.close()
    assert ("met" if good else "missed") in (tmp_path / "out").read_text()
