"""Groups are spread evenly over the members, the same on every replica, and few move when one comes or goes."""

from __future__ import annotations

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


def test_hundreds_of_members() -> None:
    owners = assign_groups([f"s{n}" for n in range(300)], 1024)
    assert set(Counter(owners.values()).values()) == {3, 4}


def test_nobody() -> None:
    assert assign_groups([], 16) == {}
