"""The fleet view: shares of slots, and when an incarnation has surely ended."""

from __future__ import annotations

import pytest

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_scheduler import fleet as fleet_module
from flint_scheduler.fleet import FleetView


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    moment = [1000.0]
    monkeypatch.setattr(fleet_module, "boottime", lambda: moment[0])
    return moment


def worker(incarnation: str, slots: int = 10) -> registry_pb2.WorkerCard:
    return registry_pb2.WorkerCard(incarnation=incarnation, worker_id=incarnation, slots=slots)


def view(ended: list[str]) -> FleetView:
    fleet = FleetView(overcommit=1.0, lease_ttl_s=5)
    fleet.on_ended = lambda incarnation, left: ended.append(incarnation)
    return fleet


async def test_slots_are_shared_and_bounded(now: list[float]) -> None:
    fleet = view([])
    fleet.snapshot({"a": worker("a", 10), "b": worker("b", 4)}, set())
    fleet.share_between(2)
    taken = 0
    while fleet.reserve() is not None:
        taken += 1
    assert taken == 5 + 2
    assert not fleet.has_room()
    fleet.release("a")
    assert fleet.has_room()


async def test_who_came_back_is_sent_no_legs_under_the_former_incarnation(now: list[float]) -> None:
    def life(incarnation: str, worker_id: str, second: int, host: str = "here") -> registry_pb2.WorkerCard:
        card = registry_pb2.WorkerCard(incarnation=incarnation, worker_id=worker_id, slots=1, host=host)
        card.register_time.FromSeconds(second)
        return card

    def room() -> list[str]:
        """Who would be sent legs."""
        names = []
        while (found := fleet.reserve()) is not None:
            names.append(found.card.incarnation)
        for name in names:
            fleet.release(name)
        return sorted(names)

    ended: list[str] = []
    fleet = view(ended)
    fleet.snapshot(
        {"new": life("new", "w-1", 20), "old": life("old", "w-1", 10), "far": life("far", "w-1", 5, host="there")},
        set(),
    )
    assert room() == ["far", "new"]
    fleet.put("newer", life("newer", "w-1", 30))
    assert room() == ["far", "newer"]
    fleet.beat(registry_pb2.Beat(incarnation="new", legs=0))
    assert room() == ["far", "newer"]
    assert ended == [], "only its lease says that it has ended"
    fleet.deleted("newer")
    assert room() == ["far", "new"], "two of one id on one host: strange, but not lost"
    fleet.deleted("new")
    fleet.deleted("far")
    assert room() == ["old"]
    assert ended == ["newer", "new", "far"]


async def test_a_crowd_is_seen_where_another_worker_has_room(now: list[float]) -> None:
    fleet = view([])
    fleet.snapshot({"a": worker("a", 2), "b": worker("b", 4), "c": worker("c", 4)}, set())
    while fleet.reserve() is not None:
        pass

    def crowds() -> list[tuple[dict[str, int], int]]:
        return [(crowd.beyond, crowd.free) for crowd in fleet.crowds()]

    for name, legs in (("a", 4), ("b", 4), ("c", 5)):
        fleet.beat(registry_pb2.Beat(incarnation=name, legs=legs))
    assert crowds() == [], "everywhere is full"
    fleet.release("c")
    assert crowds() == [], "the others' leg that waited there has the slot"
    fleet.release("b")
    assert crowds() == [({"a": 2}, 1)], "what ended since the heartbeat is known"
    fleet.release("b")
    fleet.release("b")
    assert crowds() == [({"a": 2}, 3)]
    fleet.share_between(2)
    assert crowds() == [({"a": 2}, 2)], "another scheduler may fill some of these"
    fleet.shun("a")
    fleet.release("a")
    assert all(fleet.reserve() is not fleet.get("a") for _ in range(10)), "what comes back goes elsewhere"
    for name, legs in (("a", 1), ("a", 1), ("b", 4)):
        fleet.beat(registry_pb2.Beat(incarnation=name, legs=legs))
    assert crowds() == []


async def test_a_free_slot_is_kept_and_lent_for_what_is_asked_back(now: list[float]) -> None:
    fleet = view([])
    fleet.share_between(2)
    fleet.snapshot({name: worker(name, 4) for name in "abcdef"}, set())
    while fleet.reserve() is not None:
        pass
    for name in "abcde":
        fleet.beat(registry_pb2.Beat(incarnation=name, legs=5))
    fleet.beat(registry_pb2.Beat(incarnation="f", legs=3))
    (crowd,) = fleet.crowds()
    assert (sorted(crowd.beyond), crowd.free) == (list("abcde"), 1)
    fleet.make_room(crowd, 1)
    fleet.beat(registry_pb2.Beat(incarnation="f", legs=3))
    fleet.beat(registry_pb2.Beat(incarnation="f", legs=3))
    for name in "abcde":
        fleet.release(name)
    taken = fleet.reserve()
    assert taken is fleet.get("f"), "whatever room there is elsewhere"
    fleet.beat(registry_pb2.Beat(incarnation="f", legs=3))  # it was sent before the leg came
    assert fleet.reserve() is not fleet.get("f")
    assert not [crowd for crowd in fleet.crowds() if fleet.get("f") in crowd.vacant]
    fleet.beat(registry_pb2.Beat(incarnation="f", legs=4))
    for _ in range(3):
        fleet.forget_vacant()
    fleet.release("f")
    fleet.release("f")
    fleet.beat(registry_pb2.Beat(incarnation="f", legs=4))
    found = fleet.get("f")
    assert found is not None and found.room == 2, "what is not needed is given back"


async def test_nothing_is_borrowed_of_a_worker_that_leaves(now: list[float]) -> None:
    """The autoscaler may change its mind: the others have their shares then."""
    fleet = view([])
    fleet.share_between(2)
    card = worker("a", 10)
    card.draining = True
    fleet.snapshot({"a": card}, set())
    fleet.beat(registry_pb2.Beat(incarnation="a", legs=0))
    fleet.put("a", worker("a", 10))
    taken = 0
    while fleet.reserve() is not None:
        taken += 1
    assert taken == 5


async def test_draining_workers_get_nothing(now: list[float]) -> None:
    fleet = view([])
    fleet.snapshot({"a": worker("a")}, set())
    fleet.beat(registry_pb2.Beat(incarnation="a", draining=True))
    assert fleet.reserve() is None


async def test_a_seen_deletion_ends_at_once(now: list[float]) -> None:
    ended: list[str] = []
    fleet = view(ended)
    fleet.snapshot({"a": worker("a")}, set())
    fleet.deleted("a")
    assert ended == ["a"]
    assert fleet.has_ended("a")


async def test_a_missing_card_is_in_doubt_for_a_whole_lease(now: list[float]) -> None:
    ended: list[str] = []
    fleet = view(ended)
    fleet.snapshot({"a": worker("a")}, set())
    fleet.snapshot({}, set())  # the store was lost: the worker may live on its last renewal
    assert not fleet.has_ended("a")
    now[0] += 5.5
    fleet.tick()
    assert ended == []
    now[0] += 1.0
    fleet.tick()
    assert ended == ["a"]


async def test_a_claimant_never_seen_is_in_doubt_too(now: list[float]) -> None:
    ended: list[str] = []
    fleet = view(ended)
    fleet.snapshot({}, {"ghost"})
    assert not fleet.has_ended("ghost")
    now[0] += 7
    fleet.tick()
    assert ended == ["ghost"]


async def test_nothing_is_concluded_before_the_first_look(now: list[float]) -> None:
    ended: list[str] = []
    fleet = view(ended)
    assert not fleet.has_ended("a")
    now[0] += 100
    fleet.tick()
    assert ended == []
    fleet.snapshot({"a": worker("a")}, set())
    assert not fleet.has_ended("a")


async def test_a_worker_that_comes_back_is_in_doubt_no_more(now: list[float]) -> None:
    ended: list[str] = []
    fleet = view(ended)
    fleet.snapshot({}, {"a"})
    fleet.put("a", worker("a"))
    now[0] += 100
    fleet.tick()
    assert ended == []


async def test_settled_jobs_raise_the_watermark_in_order(now: list[float]) -> None:
    fleet = view([])
    fleet.snapshot({"a": worker("a")}, set())
    found = fleet.get("a")
    assert found is not None
    found.settle(2)
    assert found.watermark == 0
    found.settle(1)
    assert found.watermark == 2


async def test_what_others_leave_free_may_be_used(now: list[float]) -> None:
    fleet = view([])
    fleet.snapshot({"a": worker("a", 10)}, set())
    fleet.share_between(2)

    def takes() -> int:
        taken = 0
        while fleet.reserve() is not None:
            taken += 1
        return taken

    assert takes() == 5, "an even share is always there"
    fleet.beat(registry_pb2.Beat(incarnation="a", legs=10))  # five of them for others
    assert takes() == 0
    fleet.beat(registry_pb2.Beat(incarnation="a", legs=5))
    assert takes() == 3, "half of what is left, rounded up"
    for _ in range(3):
        fleet.beat(registry_pb2.Beat(incarnation="a", legs=8))
        takes()
    found = fleet.get("a")
    assert found is not None
    assert found.legs == 10
    fleet.beat(registry_pb2.Beat(incarnation="a", legs=14))  # others come: what was borrowed goes back
    fleet.release("a")
    assert takes() == 0
