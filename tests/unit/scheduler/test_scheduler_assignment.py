"""Groups are spread evenly over the members, the same on every replica, and few move when one comes or goes."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flint_scheduler.assignment import assign_groups

MEMBERS = st.sets(st.integers(0, 999).map(lambda n: f"scheduler-{n}"), min_size=1, max_size=40)


@given(MEMBERS, st.integers(1, 300))
def test_even_and_complete(members: set[str], groups: int) -> None:
    owners = assign_groups(members, groups)
    assert set(owners) == set(range(groups))
    loads = Counter(dict.fromkeys(members, 0))
    loads.update(owners.values())
    assert max(loads.values()) - min(loads.values()) <= 1


@given(MEMBERS, st.integers(1, 100), st.randoms())
def test_order_of_members_does_not_matter(members: set[str], groups: int, random: object) -> None:
    shuffled = list(members)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign_groups(shuffled, groups) == assign_groups(members, groups)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_few_groups_move_when_one_leaves(count: int) -> None:
    members = [f"scheduler-{n}" for n in range(count)]
    before = assign_groups(members, 256)
    after = assign_groups(members[:-1], 256)
    moved = sum(before[g] != after[g] for g in range(256))
    gone = sum(owner == members[-1] for owner in before.values())
    assert moved <= 2 * gone


def test_no_more_moves_than_evenness_takes_however_many_there_are() -> None:
    """400 simulated schedulers come and go, one at a time, on few groups and on many."""
    for groups in (16, 256):
        chance = random.Random(7)
        members = {"scheduler-0"}
        owners = assign_groups(members, groups)
        fresh = itertools.count(1)
        for step in range(900):
            growing = len(members) < 400 and step < 420
            before, was = owners, set(members)
            if growing or len(members) == 1 or chance.random() < 0.4:
                members.add(f"scheduler-{next(fresh)}")
            else:
                members.remove(chance.choice(sorted(members)))
            owners = assign_groups(members, groups, before)
            assert set(owners) == set(range(groups)) and set(owners.values()) <= members
            loads = Counter(dict.fromkeys(members, 0))
            loads.update(owners.values())
            assert max(loads.values()) - min(loads.values()) <= 1
            moved = sum(owners[group] != before[group] for group in range(groups))
            gone, come = was - members, members - was
            if gone:
                lost = sum(before[group] in gone for group in range(groups))
                assert moved == lost, "a group that had a living owner was moved"
            else:
                assert moved == loads[next(iter(come))], "a group was moved between others than to the newcomer"
                assert moved <= groups // len(members) + 1
            assert assign_groups(members, groups, owners) == owners, "what is even is left alone"


def test_spare_members_stay_idle_until_one_leaves() -> None:
    members = {f"s{n}" for n in range(300)}
    owners = assign_groups(members, 16)
    assert set(Counter(owners.values()).values()) == {1}
    more = members | {"another", "0-before-all", "zz"}
    assert assign_groups(more, 16, owners) == owners
    gone = owners[3]
    after = assign_groups(more - {gone}, 16, owners)
    assert {g for g in owners if owners[g] != after[g]} == {3}


@given(MEMBERS, st.integers(1, 64), st.randoms())
def test_givers_that_see_each_other_give_come_to_one_answer(members: set[str], groups: int, random: object) -> None:
    """Whoever gives does so group by group, and everybody looks again in between, in any order; it ends, and evenly."""
    newcomer = "newcomer"
    owners = dict(assign_groups(members, groups))
    everybody = sorted(members | {newcomer})
    moves = 0
    for _ in range(20 * groups + 20):
        targets = assign_groups(everybody, groups, owners)
        wrong = [group for group in range(groups) if owners.get(group) != targets[group]]
        if not wrong:
            break
        group = random.choice(wrong)  # type: ignore[attr-defined]
        if group in owners:
            del owners[group]
            moves += 1
        else:
            owners[group] = targets[group]
    else:
        raise AssertionError("it goes on for ever")
    loads = Counter(dict.fromkeys(everybody, 0))
    loads.update(owners.values())
    assert max(loads.values()) - min(loads.values()) <= 1
    assert moves <= groups // len(everybody) + 1


def test_hundreds_of_members() -> None:
    owners = assign_groups([f"s{n}" for n in range(300)], 1024)
    assert set(Counter(owners.values()).values()) == {3, 4}


def test_nobody() -> None:
    assert assign_groups([], 16) == {}
