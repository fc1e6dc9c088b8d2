"""Played days: what a day of decisions promises, and the command that reports it."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flint_elastic import PoolPolicy
from flint_elastic.simulate import main
from flint_elastic.simulation import DAYS, Day, Flint, QueueLength, best_possible, play, recorded_day

POLICY = PoolPolicy(maximum=60, slots_per_worker=4, startup_s=30)


def part(day: Day, since_h: float, until_h: float) -> Day:
    """Some hours of a day, so that a test takes a moment."""
    since, until = day.starts_at + since_h * 3_600, day.starts_at + until_h * 3_600
    legs = [pair for pair in zip(day.arrivals, day.durations, strict=True) if since <= pair[0] < until]
    coming = tuple(entry for entry in day.coming if since <= entry.at < until)
    times, durations = [at for at, _ in legs], [took for _, took in legs]
    return Day(day.name, day.about, since, times, durations, coming, day.history, until - since)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.floats(0.5, 60))
def test_no_leg_is_ended_or_lost_whatever_comes(seed: int, slots: int, startup_s: float) -> None:
    chance = random.Random(seed)
    at, legs = 0.0, []
    while at < 3_600:
        at += chance.choice([0.01, 0.5, 5.0, 400.0]) * chance.random()
        legs.append((1_000_000 + at, chance.lognormvariate(0.5, 2)))
    day = recorded_day("any", legs)
    policy = PoolPolicy(maximum=40, slots_per_worker=slots, idle_before_end_s=60, cooldown_down_s=5)
    # `play` raises when a worker with legs is ended.
    outcome = play(day, Flint(policy), slots, startup_s)
    assert len(outcome.waits) == len(day.arrivals)


def test_a_spike_is_answered_within_a_start_up() -> None:
    day = part(DAYS["spike"](3), 9.5, 11)
    outcome = play(day, Flint(POLICY), 4, 30.0)
    assert outcome.wait(1.0) < 45 and outcome.late(2.0) < 0.08
    assert outcome.samples[-1].workers <= 4


def test_schedules_are_served_without_waiting_and_reactive_policies_are_late() -> None:
    day = part(DAYS["schedules"](3), 0.8, 1.4)
    ours, theirs = play(day, Flint(POLICY), 4, 30.0), play(day, QueueLength(POLICY), 4, 30.0)
    assert ours.late(2.0) < 0.02 < theirs.late(2.0)


def test_a_steady_day_costs_little_more_than_the_best_and_is_calm() -> None:
    day = part(DAYS["steady"](3), 0, 2)
    outcome, bound = play(day, Flint(POLICY), 4, 30.0), best_possible(day, 4, 30.0, 2.0)
    assert bound.work_s < bound.worker_s < outcome.worker_s < 1.6 * bound.worker_s
    assert outcome.wait(0.95) <= 2.0 and outcome.turns <= 6


def test_a_played_day_repeats_exactly() -> None:
    first, again = (play(part(DAYS["flash-crowd"](7), 13.9, 14.4), Flint(POLICY), 4, 30.0) for _ in range(2))
    assert first.waits == again.waits and first.worker_s == again.worker_s


def test_the_command_reports_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(1)
    recording, page, image = tmp_path / "legs.csv", tmp_path / "page.md", tmp_path / "plot.svg"
    with recording.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ready_at", "held_s", "other"])
        writer.writerows([1_700_000_000 + chance.random() * 5_000, chance.expovariate(0.5), "x"] for _ in range(3_000))
    page.write_text("before\n<!-- simulation: begin -->\nold\n<!-- simulation: end -->\nafter\n")
    assert main(["--recorded", str(recording), "--report", str(page), "--image", str(image)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| legs | Flint |" in text and "| legs | best possible |" in capsys.readouterr().out
    assert "<svg" in image.read_text()[:1_000]
    recording.write_text("at\n1\n")
    assert main(["--recorded", str(recording)]) == 2
    assert "no column held_s, ready_at" in capsys.readouterr().err
    assert main(["--minimum", "9", "--maximum", "3"]) == 2
