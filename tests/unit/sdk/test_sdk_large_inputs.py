"""How an input that does not fit into one message is taken apart before it is sent."""

from __future__ import annotations

import hashlib

import orjson

from flint_core.payloads import fill
from flint_sdk import _payloads

MIB = 2**20


def test_the_largest_members_leave_until_the_rest_fits() -> None:
    value = {"name": "n", "huge": "h" * 9 * MIB, "large": ["l" * 2 * MIB], "some": "s" * 2 * MIB}
    small, parts = _payloads._taken_apart(orjson.dumps(value))
    assert [len(part) for part in parts] == [9 * MIB + 2, 2 * MIB + 4]
    shown = orjson.loads(small)
    assert (shown["name"], shown["some"]) == ("n", value["some"])
    contents = {hashlib.sha256(part).hexdigest(): orjson.loads(part) for part in parts}
    assert fill(shown, lambda reference: contents[reference.sha256]) == value
    assert list(shown) == list(value)


def test_what_cannot_be_taken_apart_is_one_value() -> None:
    for value in (["x" * MIB] * 5, "x" * 5 * MIB, {str(number): "x" * 20_000 for number in range(1_000)}):
        data = orjson.dumps(value)
        small, parts = _payloads._taken_apart(data)
        assert parts == [data]
        assert orjson.loads(small) == {"$payload": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
