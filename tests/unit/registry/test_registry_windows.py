"""The figures of the last window, from sums that only grow."""

from __future__ import annotations

from typing import Any, cast

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_ops.config import QuarantineSettings
from flint_registry.outliers import Figures
from flint_registry.quarantine import Quarantine
from flint_registry.view import LiveWorker


def worker(calls: int, errors: int) -> LiveWorker:
    told = registry_pb2.FunctionFigures(function="http", calls=calls, errors=errors, duration_ms=10 * calls)
    return LiveWorker(registry_pb2.WorkerCard(incarnation="a"), figures={"http": told})


def test_only_what_was_executed_within_the_window_counts() -> None:
    nothing = cast(Any, None)
    quarantine = Quarantine(QuarantineSettings(window_s=60), nothing, nothing)
    assert quarantine._window(worker(1000, 900), 0.0)["http"] == Figures(), "what was before it was seen is unknown"
    assert quarantine._window(worker(1010, 900), 30.0)["http"] == Figures(10, 0, 100)
    assert quarantine._window(worker(1020, 901), 60.0)["http"] == Figures(20, 1, 200)
    assert quarantine._window(worker(1030, 902), 90.0)["http"] == Figures(20, 2, 200), "the first ones are past"
