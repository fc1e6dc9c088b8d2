"""What is in force for a pool, and what the leader remembers of workers."""

from __future__ import annotations

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_ops.config import FleetSettings
from flint_ops.config.pools import merged
from flint_ops.config.settings import PoolSettings
from flint_registry.scaling.memory import LegTimes, Staying, WorkerMemory, legs_that_stay
from flint_registry.scaling.policies import policy_of
from flint_registry.view import LiveWorker


def test_own_values_over_configured_over_defaults() -> None:
    fleet = FleetSettings(
        defaults=PoolSettings(idle_s=60, maximum_workers=5), pools={"gpu": PoolSettings(maximum_workers=3)}
    )
    gpu = merged(fleet, "gpu", {"minimum_workers": 2, "unknown_to_this_build": 1})
    assert (gpu.minimum_workers, gpu.maximum_workers, gpu.idle_s) == (2, 3, 60)
    assert merged(fleet, "other", {}).maximum_workers == 5


def test_the_minimum_counts_where_bounds_contradict_each_other() -> None:
    settings = merged(FleetSettings(), "default", {"minimum_workers": 50})
    assert settings.maximum_workers == 50
    assert policy_of(settings, seen_slots=8, decide_s=1).slots_per_worker == 8


def beat(legs: int, ended: int, leg_s: float) -> LiveWorker:
    told = registry_pb2.Beat(legs=legs, legs_ended=ended, leg_s=leg_s, leg_s_squared=leg_s**2)
    return LiveWorker(registry_pb2.WorkerCard(), told)


def test_a_worker_that_had_a_leg_between_two_beats_was_not_idle() -> None:
    memory, times = WorkerMemory(), LegTimes()
    memory.look(beat(0, 0, 0.0), 10.0, times)
    assert memory.idle_since == 10.0
    memory.look(beat(0, 0, 0.0), 20.0, times)
    assert memory.idle_since == 10.0
    memory.look(beat(0, 1, 0.5), 30.0, times)
    assert memory.idle_since is None and times.mean_s == 0.5
    memory.look(beat(0, 1, 0.5), 40.0, times)
    assert memory.idle_since == 40.0


def test_times_of_legs_are_forgotten_by_half_in_ten_minutes() -> None:
    times = LegTimes()
    times.add(10, 10.0, 10.0, 1000.0)
    times.add(5, 50.0, 500.0, 1600.0)
    assert times.mean_s is not None and abs(times.mean_s - 5.5) < 1e-9
    assert times.spread > 0.5


def test_legs_that_stay_are_those_that_ends_do_not_explain() -> None:
    stays, ends, both = Staying(), Staying(), Staying()
    stays.look(8, 0.0, None, 100.0)
    ends.look(8, 0.0, 1.0, 100.0)
    both.look(8, 0.0, 1.0, 100.0)
    for second in range(101, 131):
        stays.look(8, 0.0, None, float(second))
        ends.look(8, 8.0, 1.0, float(second))  # eight legs of a second each, all the time
        both.look(8, 3.0, 1.0, float(second))  # five of the slots are held by others
        assert legs_that_stay([(8, ends)]) == 0
    assert legs_that_stay([(8, stays)]) == 7  # as good as all
    assert legs_that_stay([(8, stays), (8, ends)]) >= 4
    assert 2 <= legs_that_stay([(8, both)]) <= 5
    assert legs_that_stay([(1, stays)]) == 1, "never more than are held now"
    assert legs_that_stay([]) == 0
