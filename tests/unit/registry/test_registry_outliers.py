"""Which workers stand out of their pool."""

from __future__ import annotations

import random

from flint_ops.config import QuarantineSettings
from flint_registry.outliers import Figures, outliers

SETTINGS = QuarantineSettings()


def pool(count: int, **others: Figures) -> dict[str, dict[str, Figures]]:
    chance = random.Random(7)
    alike = {
        f"w{n}": Figures(100 + n, chance.randrange(4), (100 + n) * chance.randrange(90, 111)) for n in range(count)
    }
    return {worker: {"http": figures} for worker, figures in (alike | others).items()}


def test_like_workers_are_left_alone() -> None:
    assert outliers(pool(10), SETTINGS) == []


def test_a_worker_whose_calls_fail_stands_out() -> None:
    (found,) = outliers(pool(6, bad=Figures(50, 45, 5000)), SETTINGS)
    assert found.worker == "bad" and "90% of its 50 calls of http failed" in found.reason


def test_a_slow_worker_stands_out_and_the_worst_is_first() -> None:
    found = outliers(pool(6, bad=Figures(50, 45, 5000), slow=Figures(50, 0, 50 * 2000)), SETTINGS)
    assert {outlier.worker for outlier in found} == {"bad", "slow"}
    assert found[0].distance >= found[1].distance


def test_what_fails_for_all_is_nobodys_fault() -> None:
    failing = {f"w{n}": {"http": Figures(100, 95 + n % 3, 10_000)} for n in range(6)}
    assert outliers(failing, SETTINGS) == []


def test_too_few_calls_or_workers_say_nothing() -> None:
    assert outliers(pool(6, bad=Figures(SETTINGS.minimum_calls - 1, 19, 100)), SETTINGS) == []
    assert outliers(pool(1, bad=Figures(50, 50, 100)), SETTINGS) == []


def test_small_absolute_differences_are_no_outliers() -> None:
    quick = {f"w{n}": {"noop": Figures(100, 0, 100)} for n in range(6)}
    assert outliers(quick | {"w9": {"noop": Figures(100, 0, 900)}}, SETTINGS) == [], "9 ms beside 1 ms"
