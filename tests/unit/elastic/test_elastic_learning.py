"""Durations, history, forecasts and how far they are trusted; the ledger's records."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flint_elastic import (
    ArrivalHistory,
    Backlog,
    DurationBook,
    DurationSketch,
    Forecast,
    Observation,
    PoolPolicy,
    PoolState,
    Tracker,
    WorkerState,
    WorkerView,
    decide,
    evaluate,
    record,
    seasonal_naive,
)
from flint_elastic.rates import RateEstimate
from flint_elastic.training import Training, train

DAY = 288
NOW = 1_000_000.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.002, 100_000), min_size=1, max_size=300), st.floats(0, 1))
def test_quantiles_are_within_their_promise(durations: list[float], share: float) -> None:
    sketch = DurationSketch()
    for seconds in durations:
        sketch.add(seconds, NOW)
    exact = sorted(durations)[max(0, math.ceil(share * len(durations) - 1e-6) - 1)]
    assert sketch.quantile(share) == pytest.approx(exact, rel=0.051)
    assert sketch.mean == pytest.approx(sum(durations) / len(durations), rel=1e-6)
    again = DurationSketch.from_json(json.loads(json.dumps(sketch.to_json())))
    assert again.quantile(share) == sketch.quantile(share)


def test_old_durations_are_forgotten_for_years_on_end() -> None:
    sketch = DurationSketch(half_life_s=3_600)
    for hour in range(2_000):
        sketch.add(10.0 if hour < 1_990 else 1.0, NOW + hour * 3_600)
    median, weight = sketch.quantile(0.5), sketch.weight(NOW + 2_000 * 3_600)
    assert median is not None and median < 1.1 and weight == pytest.approx(1.0, abs=0.01)
    assert sketch.mean == pytest.approx(1.0, abs=0.05)


def test_legs_that_never_end_do_not_make_others_look_long() -> None:
    sketch = DurationSketch()
    sketch.add(2.0, NOW, 9_950)
    sketch.add(80_000.0, NOW, 50)
    mean = sketch.cut_mean
    assert mean is not None and mean == pytest.approx(2.0, rel=0.06) and sketch.cut_spread < 0.1
    assert sketch.mean is not None and sketch.mean > 300


def test_a_book_falls_back_and_stays_small() -> None:
    book = DurationBook(most_kinds=3, default_s=7.0)
    assert book.mean("new") == 7.0 and book.quantile(0.9, "new") is None
    for _ in range(50):
        book.add("short", 1.0, NOW)
        book.add("long", 100.0, NOW)
    assert book.mean("short", NOW) < 3 < 40 < book.mean("new", NOW) < 60 < book.mean("long", NOW)
    assert book.mean_of([("short", 1), ("long", 1)], NOW) == pytest.approx(book.mean(), rel=0.1)
    for index in range(5):
        book.add(f"kind {index}", 5.0, NOW)
    again = DurationBook.from_json(json.loads(json.dumps(book.to_json())))
    assert len(again.to_json()["kinds"]) == 3 and again.mean("kind 4") == book.mean("kind 4")


def test_a_rate_follows_a_change_and_not_chance() -> None:
    chance = random.Random(5)
    rate, seen = RateEstimate(), []
    for _ in range(2_000):
        arrived = sum(1 for _ in range(200) if chance.random() < 0.1)
        rate = rate.observe(arrived / 5, 5)
        seen.append(rate)
    settled = seen[100:]
    assert all(abs(one.per_s - 4) < 1.0 for one in settled) and sum(one.spiking for one in settled) <= 2
    first = rate.observe(40.0, 5)
    second = first.observe(40.0, 5)
    assert first.spiking and first.latest == 40.0 and first.per_s < 8 and second.per_s == 40.0
    once = first.observe(4.0, 5)
    assert once.per_s < 8
    for _ in range(24):
        second = second.observe(1.0, 5)
    assert second.per_s < 4


def pattern(bucket: int) -> float:
    """Arrivals a second: a step at nine and a hump, on working days."""
    hour, weekday = bucket % DAY / 12, bucket // DAY % 7
    return 0.3 if weekday >= 5 else 0.5 + 3 * math.exp(-(((hour - 14) / 2) ** 2)) + (8 if 9 <= hour < 9.5 else 0)


def history_of(rate: list[float], seed: int = 1) -> ArrivalHistory:
    chance, history = random.Random(seed), ArrivalHistory()
    for bucket, mean in enumerate(rate):
        history.add(bucket * 300.0, max(0, round(chance.gauss(mean * 300, math.sqrt(mean * 300)))))
    history.add(len(rate) * 300.0, 0)
    return history


def test_history_keeps_five_weeks_and_fills_gaps() -> None:
    history = ArrivalHistory()
    history.add(3_000, 5)
    history.add(3_900, 7)
    history.add(4_200, 1)
    assert history.rates() == [5 / 300, 0, 0, 7 / 300] and history.ends_at == 4_200
    history.add(10, 9)
    assert len(history) == 4
    history.add(4_200 + 300 * DAY * 36, 2)
    history.add(4_500 + 300 * DAY * 36, 2)
    assert len(history) == 1
    assert ArrivalHistory.from_json(json.loads(json.dumps(history.to_json()))).rates() == history.rates()


def test_little_history_gives_no_forecast() -> None:
    assert seasonal_naive([1.0] * (DAY - 1), 0.0).rates == ()
    assert train(ArrivalHistory()).forecast.rates == ()
    one_day = train(history_of([1.0] * DAY))
    assert len(one_day.forecast.rates) == 2 * DAY and one_day.forecast.trust == 0


@pytest.mark.parametrize("library", [True, False])
def test_a_pattern_is_learned_and_trusted(library: bool) -> None:
    days = 10
    training = train(history_of([pattern(bucket) for bucket in range(days * DAY)]), library=library)
    assert training.forecast.trust > 0.8 and ("mstl" in training.forecast.source) == library
    assert training.forecast.starts_at == days * DAY * 300
    due = [pattern(days * DAY + ahead) for ahead in range(2 * DAY)]
    error = math.sqrt(
        sum((one - other) ** 2 for one, other in zip(training.forecast.rates, due, strict=True)) / len(due)
    )
    assert error < 0.5 < training.errors["unchanged"]
    nine = training.forecast.starts_at + 9 * 3_600
    assert training.forecast.rise(nine - 100, nine + 60) > 5
    assert Training.from_json(json.loads(json.dumps(training.to_json()))).forecast.trust == pytest.approx(
        training.forecast.trust, abs=1e-3
    )


def test_noise_earns_no_trust_and_a_broken_pattern_loses_it() -> None:
    assert train(history_of([2.0] * (10 * DAY))).forecast.trust < 0.3
    training = train(history_of([pattern(bucket) for bucket in range(16 * DAY)]), library=False)
    tracker = training.tracker
    for bucket in range(DAY):
        tracker = tracker.observe(training.forecast, 0.5, 0.5, training.forecast.starts_at + (bucket + 1) * 300)
    assert tracker.trust < 0.75 * training.tracker.trust
    assert Tracker.from_json(tracker.to_json()) == tracker


def test_training_runs_as_a_process_of_its_own() -> None:
    history = history_of([pattern(bucket) for bucket in range(3 * DAY)])
    command = [sys.executable, "-m", "flint_elastic.training"]
    done = subprocess.run(command, input=json.dumps(history.to_json()), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(Training.from_json(json.loads(done.stdout)).forecast.rates) == 2 * DAY
    bad = subprocess.run(command, input="{}", capture_output=True, text=True, timeout=120)
    assert bad.returncode == 2 and "no history" in bad.stderr


def test_a_forecast_comes_back_from_json() -> None:
    forecast = Forecast(300.0, (1.0, 2.5), 0.5, "mstl")
    assert Forecast.from_json(json.loads(json.dumps(forecast.to_json()))) == forecast
    assert forecast.at(299) is None and forecast.at(601) == 2.5 and forecast.at(900) is None


def test_the_ledger_says_how_right_a_decision_was() -> None:
    policy = PoolPolicy(maximum=10, slots_per_worker=4)
    seen = Observation(NOW, (Backlog(5, 30, 1.0),), 6.0, 4.0)
    decision = decide(policy, PoolState(), seen)
    entry = json.loads(json.dumps(record(decision)))
    assert entry["action"] == "up" and entry["start"] == decision.start and entry["inputs"]["needs"]["backlog"] > 0

    def later(at: float, waiting: int, legs: int, wait_s: float, count: int = 2) -> Observation:
        there = tuple(WorkerView(str(index), WorkerState.READY, 4, legs) for index in range(count))
        backlog = (Backlog(5, waiting, wait_s),) if waiting else ()
        return Observation(NOW + at, backlog, 6.0, workers=there, wait_p95_s=wait_s)

    late = evaluate(policy, decision, [later(5, 20, 4, 6.0), later(10, 10, 4, 9.0)])
    assert (late.rating, late.wait_p95_s, late.missing_slot_s) == ("too few", 9.0, 150.0)
    good = evaluate(policy, decision, [later(5, 0, 3, 0.1), later(10, 0, 3, 0.2)])
    assert good.rating == "good" and good.kept_target and good.spare_slot_s == 20.0
    wasted = evaluate(policy, decision, [later(60, 0, 1, 0.0, count=8)])
    assert wasted.rating == "too many" and wasted.to_json()["rating"] == "too many"
    assert evaluate(policy, decision, []).kept_target is None
