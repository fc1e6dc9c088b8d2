"""What outlines tell of large values is what the whole would, and never half of something."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from flint_core.expressions import ExpressionFault, compile_expression
from flint_core.outlines import Outline, outline_of, read_outlines
from flint_core.payloads import Reference, fill, holds_reference

ROOM = 600
BIG = "x" * 2_000


class Store:
    """Values by reference, and their outlines."""

    def __init__(self) -> None:
        self.values: dict[Reference, Any] = {}
        self.made: list[Reference] = []

    def keep(self, value: Any) -> Any:
        data = orjson.dumps(value)
        reference = Reference(hashlib.sha256(data).hexdigest(), len(data))
        self.values[reference] = value
        return reference.to_json()

    def whole(self, value: Any) -> Any:
        return fill(value, lambda reference: self.whole(self.values[reference]))

    def told(self, source: str, input: Any, variables: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        expression = compile_expression(source, variables=frozenset(variables))
        assert expression.reads is not None
        known: dict[Reference, Outline | None] = {}
        for _ in range(20):
            found, wanted = read_outlines(expression.reads, input, variables, known)
            if not wanted:
                return found
            for reference in wanted:
                assert reference not in known
                self.made.append(reference)
                known[reference] = outline_of(self.values[reference], ROOM)
        raise AssertionError("it asks for ever")


def outcome(source: str, input: Any, variables: dict[str, Any]) -> Any:
    try:
        return compile_expression(source, variables=frozenset(variables)).evaluate(input, variables, 0)
    except ExpressionFault as fault:
        return ("fault", fault.detail)


def test_small_members_stay_and_the_rest_is_named() -> None:
    value = {
        "big": BIG,
        "name": "n",
        "deep": {"blob": BIG, "id": 7, "list": [1, {"a": 2}]},
        "rows": [1] * 900,
        "no": None,
    }
    outline = outline_of(value, ROOM)
    assert outline is not None
    assert outline.value == {"name": "n", "deep": {"id": 7, "list": [1, {"a": 2}]}, "no": None}
    assert list(outline.value) == ["name", "deep", "no"], "in their order"
    assert outline.left_out == {("big",), ("deep", "blob"), ("rows",)}
    assert outline_of([1, 2], ROOM) is None
    assert outline_of({str(number) * 9: BIG for number in range(1_000)}, ROOM) is None, "the names alone are too much"
    long = {"k" * 400: {f"m{number}": BIG for number in range(50)}}
    assert outline_of(long, ROOM) is None, "nor may names that are repeated take more"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (".name", True),
        (".deep.id + .deep.list[1].a", True),
        (".deep.list", True),
        ("{n: .name, i: .deep.id}", True),
        (".missing", True),
        (".name.first", True),
        (".deep.id[0]", True),
        ('"\\(.name)!"', True),
        ("$x.name", True),
        ("$y.in.name + .name", True),
        ("$y.held[1].name", True),
        (".big", False),
        (".deep.blob", False),
        (".deep", False),
        (".", False),
        ("{n: .name, all: .}", False),
        (".rows[3]", False),
        ("length", False),
        (".[0]", False),
    ],
)
def test_what_is_read_is_told_or_the_whole_is_needed(source: str, told: bool) -> None:
    store = Store()
    value = {"big": BIG, "name": "n", "deep": {"blob": BIG, "id": 7, "list": [1, {"a": 2}]}, "rows": [1] * 900}
    reference = store.keep(value)
    variables = {"x": reference, "y": {"in": reference, "held": [1, reference], "else": store.keep([BIG])}}
    found = store.told(source, reference, variables)
    assert (found is not None) == told
    if found is not None:
        assert not holds_reference(list(found))
        assert len(orjson.dumps(found)) < ROOM
        assert outcome(source, *found) == outcome(source, store.whole(reference), store.whole(variables))


def test_a_value_within_a_value_is_read_through_both() -> None:
    store = Store()
    inner = store.keep({"big": BIG, "id": 7})
    outer = store.keep({"inner": inner, "list": [inner], "big": BIG})
    for source in (".inner.id", ".list[0].id", "[.inner.id, .list[0].id]"):
        found = store.told(source, outer, {})
        assert found is not None
        assert outcome(source, *found) == outcome(source, store.whole(outer), {})
    assert store.told(".inner", outer, {}) is None
    assert store.told(".list", outer, {}) is None


def test_nothing_is_asked_for_what_no_outline_can_tell() -> None:
    store = Store()
    reference = store.keep({"name": BIG})
    for source in (".", "length", ".[0]", "{a: .}"):
        assert store.told(source, reference, {}) is None
    assert store.made == []


def _value(random: random.Random, store: Store, depth: int) -> Any:
    makers: list[Callable[[], Any]] = [
        lambda: random.randrange(100),
        lambda: "s" * random.choice((1, 30, 700)),
        lambda: None,
    ]
    if depth:
        makers += [
            lambda: {key: _value(random, store, depth - 1) for key in random.sample("abcd", random.randrange(5))},
            lambda: [_value(random, store, depth - 1) for _ in range(random.randrange(3))],
            lambda: store.keep(_value(random, store, depth - 1)),
        ] * 2
    return random.choice(makers)()


def _source(random: random.Random) -> str:
    def walk() -> str:
        steps = "".join(random.choice((".a", ".b", ".c", ".d", "[0]", "[-1]")) for _ in range(random.randrange(4)))
        root = random.choice(("$v", "$w", ""))
        return (root + steps).replace(".[", "[") if root else ("." + steps.lstrip(".") if steps else ".")

    shape = random.choice(("{}", "{{k: {}, l: {}}}", "[{}, {}]", "{} // {}", "if {} then {} else {} end", "{} == {}"))
    return shape.format(*(walk() for _ in range(3)))


@pytest.mark.parametrize("seed", range(20))
def test_random_reads_give_what_the_whole_gives(seed: int) -> None:
    chance = random.Random(seed)
    told = 0
    for _ in range(150):
        store = Store()
        input, variables = _value(chance, store, 4), {name: _value(chance, store, 4) for name in "vw"}
        source = _source(chance)
        found = store.told(source, input, variables)
        if found is not None:
            told += 1
            expected = outcome(
                source, store.whole(input), {name: store.whole(value) for name, value in variables.items()}
            )
            assert outcome(source, *found) == expected, source
    assert told > 10
