"""How deeply values may be nested: decided without recursion, before anything has to write them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from flint_core.sizes import VALUE_DEPTH, nested_too_deeply, too_deep


def nested(levels: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["list", "object"])
def test_a_value_has_so_many_levels_and_no_more(kind: str) -> None:
    for levels, wrong in ((0, False), (1, False), (VALUE_DEPTH, False), (VALUE_DEPTH + 1, True), (100_000, True)):
        assert nested_too_deeply(nested(levels, kind)) is wrong


def test_a_text_is_not_deep_because_it_is_wide_or_speaks_of_brackets() -> None:
    assert not too_deep(orjson.dumps([[] for _ in range(1_000)]))
    assert not too_deep(orjson.dumps("[" * 1_000))
    assert too_deep(b"[" * 1_000 + b"]" * 1_000)


def test_what_is_allowed_can_be_written_where_it_is_held() -> None:
    held = nested(VALUE_DEPTH, "object")
    for _ in range(50):
        held = [held]
    assert orjson.loads(orjson.dumps(held)) == held
