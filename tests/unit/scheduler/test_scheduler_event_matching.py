"""Filters split into shapes and matches: never too narrow, and a lookup for what is compared by value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flint_core.patterns import equal
from flint_scheduler.event_matching import ShapeBook, split_filters

EVENT = {
    "specversion": "1.0",
    "id": "1",
    "source": "/shop",
    "type": "com.example.paid",
    "subject": "A-1",
    "count": 3,
    "data": {"order": "A-1", "amount": 10, "nested": {"x": [1, 2.0]}},
}


def hits(part: dict[str, Any], event: dict[str, Any] = EVENT) -> bool:
    """Whether the event finds the subscription of one filter."""
    (split,) = split_filters("default", {"filters": [part]})
    found = ShapeBook().matches(event, [split.shape], 0)
    return (split.shape, split.match) in found


@pytest.mark.parametrize(
    ("part", "hit"),
    [
        ({}, True),
        ({"with": {}}, True),
        ({"with": {"type": "com.example.paid"}}, True),
        ({"with": {"type": "comXexample.paid"}}, False),
        ({"with": {"type": "com\\.example\\..*"}}, True),
        ({"with": {"type": "com\\.other\\..*"}}, False),
        ({"with": {"source": "/shop", "subject": "A-1"}}, True),
        ({"with": {"source": "/shop", "subject": "A-2"}}, False),
        ({"with": {"tenant": "acme"}}, False),
        ({"with": {"count": 3.0}}, True),
        ({"with": {"count": True}}, False),
        ({"correlate": {"o": {"from": ".data.order", "expect": "A-1"}}}, True),
        ({"correlate": {"o": {"from": "${ .data.order }", "expect": "A-2"}}}, False),
        ({"correlate": {"o": {"from": ".data.amount", "expect": 10.0}}}, True),
        ({"correlate": {"o": {"from": ".data.nested", "expect": {"x": [1, 2]}}}}, True),
        ({"correlate": {"o": {"from": ".data.order"}}}, True),
        ({"correlate": {"o": {"from": ".data.missing", "expect": None}}}, True),
        ({"correlate": {"o": {"from": '.data.order | test("^A")', "expect": False}}}, True),
        ({"correlate": {"o": {"from": ".data.order.deeper", "expect": 1}}}, False),
        ({"correlate": {"o": {"from": "$context.x", "expect": 1}}}, True),
        ({"correlate": {"o": {"from": "now", "expect": 1}}}, True),
        ({"with": {"data": "x"}}, True),
    ],
)
def test_what_an_event_finds(part: dict[str, Any], hit: bool) -> None:
    assert hits(part) is hit


def test_no_filters_means_every_event() -> None:
    assert len(split_filters("default", {"filters": []})) == 1
    assert len(split_filters("default", {})) == 1


def test_filters_of_one_definition_share_a_shape() -> None:
    def of(order: str) -> Any:
        part = {"with": {"type": "paid"}, "correlate": {"o": {"from": ".data.order", "expect": order}}}
        (split,) = split_filters("default", {"filters": [part]})
        return split

    one, other = of("A-1"), of("A-2")
    assert one.shape == other.shape
    assert one.match != other.match
    assert of("A-1") == one
    assert split_filters("other", {"filters": [{}]})[0].shape.namespace == "other"


def test_equal_filters_subscribe_once() -> None:
    assert len(split_filters("default", {"filters": [{"with": {"type": "a"}}, {"with": {"type": "a"}}]})) == 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES, VALUES)
def test_whatever_the_machine_calls_equal_is_found(expected: Any, value: Any) -> None:
    part = {"correlate": {"v": {"from": ".data", "expect": expected}}}
    if equal(expected, value):
        assert hits(part, EVENT | {"data": value})
    assert hits(part, EVENT | {"data": expected})


def test_an_event_that_cannot_be_compared_is_passed_over() -> None:
    """Its other filters still find it: events were stored before their depth had a limit."""
    deep: Any = 1
    for _ in range(1_000):
        deep = [deep]
    event = {**EVENT, "data": {"order": deep}}
    assert hits({"with": {"type": "com.example.paid"}}, event)
    assert not hits({"correlate": {"o": {"from": "${ .data.order }", "expect": "A-1"}}}, event)


def test_an_expression_that_builds_without_bound_matches_nothing() -> None:
    growing = " | ".join(["[., ., ., ., ., ., ., .]"] * 20) + " | tojson | length"
    part = {"with": {"type": "com.example.paid"}, "correlate": {"size": {"from": "${ " + growing + " }", "expect": 1}}}
    assert not hits(part)
    assert hits({"with": {"type": "com.example.paid"}})


def test_a_type_that_cannot_be_stored_is_left_to_the_machine() -> None:
    (split,) = split_filters("default", {"filters": [{"with": {"type": "a\0b"}}]})
    assert split.shape.type == ""
