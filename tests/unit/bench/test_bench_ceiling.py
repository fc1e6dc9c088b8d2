"""The model of what more cores bring, and where it says that throughput ends."""

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from ceiling import COMMITS, PUBLISHES, Model, conclusion


def test_the_model_gives_back_what_it_was_fitted_to() -> None:
    model = Model.fitted(400.0, 2000.0, 3600.0)
    assert model.rate(1) == pytest.approx(2000.0)
    assert model.rate(2) == pytest.approx(3600.0)
    assert model.rate(1000) < model.most == pytest.approx(18_000.0)


def test_the_fewest_cores_that_reach_a_rate() -> None:
    model = Model.fitted(400.0, 2000.0, 3600.0)
    assert model.cores(1.0) == 1
    assert model.cores(2000.0) == 1
    assert model.cores(2001.0) == 2
    found = model.cores(10_000.0)
    assert found is not None
    assert model.rate(found - 1) < 10_000.0 <= model.rate(found)
    assert model.cores(18_001.0) is None


def test_without_a_loss_nothing_but_the_servers_ends_it() -> None:
    model = Model.fitted(400.0, 2000.0, 4100.0)
    assert model.sigma == 0
    assert model.most == math.inf
    assert model.cores(20_000.0) == 10


def test_the_first_ceiling_is_the_lowest_one_that_cores_can_reach() -> None:
    model = Model.fitted(400.0, 2000.0, 3600.0)
    text = conclusion(model, {COMMITS: 90_000.0, PUBLISHES: 9_000.0})
    assert text.startswith(f"The first ceiling is {PUBLISHES}: 9,000 runs/s, reached with 9 cores.")
    text = conclusion(model, {COMMITS: 90_000.0, PUBLISHES: 30_000.0})
    assert "coordination: 18,000 runs/s" in text
    assert f"{PUBLISHES} would allow 30,000 runs/s" in text
