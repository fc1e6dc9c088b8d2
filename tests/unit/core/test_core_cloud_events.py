"""What makes a CloudEvent valid, and what is filled in."""

from __future__ import annotations

from typing import Any

import pytest

from flint_core.cloud_events import attribute_problems, complete_event

GOOD = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "com.example.paid"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"time": "2026-01-31T12:00:00Z"},
        {"time": "2026-01-31t12:00:00.123456789+01:00"},
        {"datacontenttype": "application/json; charset=utf-8", "data": {"a": [1]}},
        {"data": None},
        {"data_base64": "AAEC"},
        {"dataschema": "https://example.com/schema.json", "subject": "order 1"},
        {"source": "https://example.com/orders?id=1#x"},
        {"tenant": "acme", "count": 3, "urgent": True, "absent": None},
    ],
)
def test_valid_events(more: dict[str, Any]) -> None:
    assert attribute_problems(GOOD | more) == []


@pytest.mark.parametrize(
    ("more", "attribute"),
    [
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"id": "x" * 257}, "id"),
        ({"id": "a\0b"}, "id"),
        ({"source": None}, "source"),
        ({"source": "not a uri"}, "source"),
        ({"type": ["x"]}, "type"),
        ({"specversion": "0.3"}, "specversion"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2026-02-31T12:00:00Z"}, "time"),
        ({"datacontenttype": "json"}, "datacontenttype"),
        ({"dataschema": "relative.json"}, "dataschema"),
        ({"subject": ""}, "subject"),
        ({"data": 1, "data_base64": "AAEC"}, "data_base64"),
        ({"data_base64": "?"}, "data_base64"),
        ({"Tenant": "x"}, "Tenant"),
        ({"order_id": "x"}, "order_id"),
        ({"count": 2**31}, "count"),
        ({"nested": {"a": 1}}, "nested"),
        ({"ratio": 0.5}, "ratio"),
        ({f"x{n}": "v" for n in range(51)}, ""),
    ],
)
def test_invalid_events_name_the_attribute(more: dict[str, Any], attribute: str) -> None:
    assert [name for name, _ in attribute_problems(GOOD | more)] == [attribute]


def test_what_is_no_object_is_no_event() -> None:
    assert attribute_problems([1])[0][0] == ""
    assert {name for name, _ in attribute_problems({})} == {"id", "source", "type", "specversion"}


def test_what_is_left_out_is_filled_in() -> None:
    event = complete_event(
        {"type": "t", "data": None, "subject": None}, event_id="e", source="/s", at_ms=1_700_000_000_123
    )
    assert event == {
        "type": "t",
        "data": None,
        "specversion": "1.0",
        "id": "e",
        "source": "/s",
        "time": "2023-11-14T22:13:20.123Z",
        "datacontenttype": "application/json",
    }
    assert attribute_problems(event) == []
    kept = complete_event({**GOOD, "time": "2026-01-01T00:00:00Z"}, event_id="e", source="/s", at_ms=0)
    assert kept == {**GOOD, "time": "2026-01-01T00:00:00Z"}
