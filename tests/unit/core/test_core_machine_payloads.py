"""Large values by reference: they leave the state, expressions still see them, and a replay comes to the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flint_core.effects import Evaluate
from flint_core.events import CallSucceeded, Evaluated
from flint_core.machine import Failed, Machine, MachineLimits
from flint_core.payloads import (
    Reference,
    holds_reference,
    is_reference,
    reference_of,
    references_in,
    references_in_json,
    spill,
    splice,
)
from flint_core.plan import Schema
from flint_core.problems import ProblemType
from support.machines import FACTS, Driver, evaluate, program_of

LIMIT = 40_000
LIMITS = MachineLimits(payload_bytes=LIMIT, state_bytes=LIMIT)
BIG = [f"line {number:05}" for number in range(20_000)]


@dataclass
class Store:
    values: dict[str, bytes] = field(default_factory=dict)

    def keep(self, payloads: Any) -> None:
        for payload in payloads:
            self.values[payload.reference.sha256] = payload.data

    def resolve(self, value: Any) -> Any:
        reference = reference_of(value)
        if reference is not None:
            return self.resolve(orjson.loads(self.values[reference.sha256]))
        if isinstance(value, dict):
            return {key: self.resolve(member) for key, member in value.items()}
        return [self.resolve(item) for item in value] if isinstance(value, list) else value

    def spill(self, value: Any) -> Any:
        small, payloads = spill(value, LIMIT)
        self.keep(payloads)
        return small


class LargeDriver(Driver):
    """Resolves references for expressions and calls as a worker does."""

    store: Store

    def settle(self) -> None:
        while True:
            while self.machine.advance(50):
                pass
            self.records += self.machine.take_records()
            self.store.keep(self.machine.take_payloads())
            assert len(self.machine.snapshot()) < 5 * LIMIT
            questions = []
            for effect in self.machine.take_effects():
                self.effects.append(effect)
                if isinstance(effect, Evaluate):
                    questions.append(effect)
                else:
                    self.due.append((self.now + self.took_ms, effect.effect_id, effect))
                    self.calls.append(effect)
            if not questions:
                return
            for question in questions:
                data = self.store.resolve(question.input)
                if question.schema is not None:
                    self.feed(Evaluated(question.effect_id, Schema(question.schema).first_error(data)))
                    continue
                variables = {name: self.store.resolve(value) for name, value in question.variables.items()}
                answer = evaluate(Evaluate(question.effect_id, question.source, data, variables, question.now_ms))
                if isinstance(answer, Evaluated):
                    answer = Evaluated(answer.effect_id, self.store.spill(answer.value))
                self.feed(answer)


def run(body: str, data: Any = None, outcome: Any = None) -> LargeDriver:
    store = Store()
    program = program_of(body)
    given_outcome = outcome or (lambda arguments: arguments.get("output"))
    driver = LargeDriver(
        Machine.start(program, FACTS, store.spill(data), 1_000, LIMITS),
        lambda call: store.spill(given_outcome(store.resolve(call.arguments))),
    )
    driver.store = store
    return driver.run()


def test_a_large_output_travels_as_a_reference_and_its_small_members_stay():
    driver = run(
        "do:\n  - fetch: {call: noop}\n  - look: {set: {status: '${ .status }', body: '${ .content }'}}\n",
        outcome=lambda arguments: {"status": 200, "content": BIG},
    )
    assert driver.output["status"] == 200
    assert is_reference(driver.output["body"])
    assert driver.store.resolve(driver.output) == {"status": 200, "body": BIG}
    assert not any(isinstance(effect, Evaluate) for effect in driver.effects)  # nobody had to look into it


def test_expressions_see_the_value():
    driver = run(
        "do:\n"
        "  - fetch: {call: noop}\n"
        "  - count:\n"
        "      set:\n"
        "        lines: ${ .content | length }\n"
        "        third: ${ .content[2] }\n"
        '        all: ${ .content | map(select(endswith("7"))) | length }\n'
        "        told: There are ${ .content | length } lines\n"
        "        ok: ${ .status == 200 }\n"
        "        upper: ${ [.content[] | ascii_upcase] }\n"
        "  - after: {set: {first: '${ $steps.fetch.content[0] }', upper: '${ .upper[1] }', lines: '${ .lines }'}}\n",
        outcome=lambda arguments: {"status": 200, "content": BIG},
    )
    assert driver.output == {"first": BIG[0], "upper": BIG[1].upper(), "lines": len(BIG)}


def test_conditions_schemas_and_calls_see_the_value():
    seen: list[Any] = []

    def outcome(arguments: Any) -> Any:
        seen.append(arguments)
        return BIG if "output" not in arguments else "done"

    driver = run(
        "do:\n"
        "  - fetch: {call: noop, export: {as: {kept: '${ . }'}, schema: {document: {required: [kept]}}}}\n"
        "  - decide: {if: 'length > 100', call: noop, with: {output: '${ . }'}, "
        "input: {schema: {document: {type: array}}}, output: {as: '{n: ($context.kept | length)}', "
        "schema: {document: {properties: {n: {const: 20000}}}}}}\n"
        "  - not: {if: '.n < 100', set: {x: 1}}\n",
        outcome=outcome,
    )
    assert driver.output == {"n": 20_000}
    assert seen[1] == {"output": BIG}


def test_a_schema_that_does_not_match_names_the_place():
    driver = run("do: [{a: {set: '${ .n }', input: {schema: {document: {type: object}}}}}]", BIG)
    assert isinstance(driver.machine.end, Failed)
    assert driver.problem.type == ProblemType.VALIDATION


def test_large_input_and_output_of_a_run():
    driver = run("do: [{a: {set: {twice: '${ . + . }'}}}]", BIG)
    assert is_reference(driver.output["twice"]) or is_reference(driver.output)
    assert driver.store.resolve(driver.output) == {"twice": BIG + BIG}


def test_a_text_with_a_large_value_in_it_fails_clearly():
    driver = run("do: [{a: {set: {told: 'All: ${ .big }'}}}]", {"big": BIG})
    assert (driver.problem.type, driver.problem.status) == (ProblemType.PAYLOAD_TOO_LARGE, 413)


def test_a_collection_by_reference_is_refused_with_a_reason():
    driver = run("do: [{l: {for: {in: .big}, do: [{a: {set: {x: 1}}}]}}]", {"big": BIG})
    assert driver.problem.type == ProblemType.PAYLOAD_TOO_LARGE
    assert "reference" in driver.problem.detail


def test_beyond_all_limits_the_step_fails():
    limits = MachineLimits(payload_bytes=1_000, value_bytes=2_000)
    machine = Machine.start(
        program_of("do: [{a: {set: {v: '${ .s + .s + .s }'}}}]"), FACTS, {"s": "x" * 900}, 0, limits
    )
    while machine.advance(50):
        pass
    assert isinstance(machine.end, Failed)
    assert machine.end.problem.type == ProblemType.PAYLOAD_TOO_LARGE


@pytest.mark.parametrize("cut", range(12))
def test_a_replay_from_any_point_comes_to_the_same(cut):
    body = (
        "do:\n"
        "  - one: {call: noop, with: {output: 1}}\n"
        "  - big: {call: noop, output: {as: '${ {rows: .} }'}}\n"
        "  - made: {set: {more: '${ [.rows[] | ascii_upcase] }'}}\n"
        "  - two: {call: noop, with: {output: '${ .more | length }'}}\n"
        "  - last: {set: {n: '${ . }', rows: '${ $steps.made.more }'}}\n"
    )

    def outcome(arguments: Any) -> Any:
        return arguments.get("output", BIG)

    whole = run(body, outcome=outcome)
    store = Store()
    driver = LargeDriver(
        Machine.start(program_of(body), FACTS, None, 1_000, LIMITS),
        lambda call: store.spill(outcome(store.resolve(call.arguments))),
    )
    driver.store = store
    for _ in range(cut):
        if not driver.next():
            break
    driver.settle()
    restored = Machine.restore(program_of(body), FACTS, driver.machine.snapshot(), LIMITS)
    driver.machine = restored
    if restored.end is None:
        restored.pending()
        driver.run()
    assert driver.output == whole.output
    assert json.loads(json.dumps(store.resolve(driver.output))) == {"n": 20_000, "rows": [x.upper() for x in BIG]}
    assert all(isinstance(event, CallSucceeded | Evaluated) for event in driver.events)


# --- the form


@given(
    st.recursive(
        st.none() | st.integers(-5, 5) | st.text(max_size=40),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=30,
    )
)
def test_spilling_loses_nothing(value):
    store = Store()
    small, payloads = spill(value, 50)
    store.keep(payloads)
    assert store.resolve(small) == value
    assert {payload.reference for payload in payloads} >= set(references_in(small)) - set(references_in(value))


def test_the_largest_members_leave_first():
    value = {"small": "x" * 10_000, "big": "y" * 50_000, "bigger": "z" * 60_000}
    small, payloads = spill(value, LIMIT + 35_000)
    assert [len(payload.data) for payload in payloads] == [60_002]
    assert small["big"] == value["big"]
    small, payloads = spill(value, LIMIT)
    assert len(payloads) == 2
    assert small["small"] == value["small"]
    assert spill(value, LIMIT) == (small, payloads)


@pytest.mark.parametrize(
    "value",
    [
        {"$payload": 1},
        {"$payload": {"sha256": "x", "bytes": 1}},
        {"$payload": {"sha256": "0" * 64, "bytes": -1}},
        {"$payload": {"sha256": "0" * 64, "bytes": True}},
        {"$payload": {"sha256": "0" * 64, "bytes": 1}, "more": 1},
        {"$payload": {"sha256": "0" * 64, "bytes": 1, "more": 1}},
        "$payload",
    ],
)
def test_what_only_looks_like_a_reference_is_a_value(value):
    assert not is_reference(value)
    assert not holds_reference([value])


def test_references_are_found_at_any_depth():
    reference = Reference("a" * 64, 5)
    value = [{"x": [{"y": reference.to_json()}]}, reference.to_json()]
    assert references_in(value) == [reference]
    assert holds_reference(value)
    assert holds_reference({"x": reference.to_json()}, 1)
    assert not holds_reference({"x": {"y": reference.to_json()}}, 1)


def test_references_are_found_and_replaced_in_json_without_parsing_it():
    one, two = Reference("a" * 64, 5), Reference("b" * 64, 2**20)
    value = {"x": [one.to_json(), two.to_json()], "y": one.to_json(), "text": json.dumps(one.to_json()), "$payload": 1}
    plain = orjson.dumps(value)
    assert references_in_json(plain) == {one: 2, two: 1}
    assert references_in_json(json.dumps(value, indent=7).encode()) == {one: 2, two: 1}
    assert references_in_json(plain.replace(b'"$payload"', b'"\\u0024p\\u0061yl\\u006Fad"')) == {one: 2, two: 1}
    assert json.loads(splice(plain, {one: b"[1]"})) == {**value, "x": [[1], two.to_json()], "y": [1]}
    assert splice(b'{"a":1}', {one: b"1"}) == b'{"a":1}'


@pytest.mark.parametrize("before", range(2**20 - 120, 2**20 + 10, 7))
def test_references_are_found_across_windows(before):
    reference = Reference("a" * 64, 5)
    data = b" " * before + orjson.dumps([reference.to_json(), 1, reference.to_json()])
    assert references_in_json(data) == {reference: 2}
    assert json.loads(splice(data, {reference: b"7"})) == [7, 1, 7]


@given(
    st.recursive(
        st.none() | st.text(alphabet='a{}"\\$:é', max_size=20) | st.just("REF"),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "$payload", '"', "{"]), inner),
        max_leaves=30,
    )
)
def test_what_is_found_in_json_is_what_is_found_in_the_value(value):
    def put(node: Any) -> Any:
        if node == "REF":
            return Reference("c" * 64, 9).to_json()
        if isinstance(node, dict):
            return {key: put(member) for key, member in node.items()}
        return [put(item) for item in node] if isinstance(node, list) else node

    filled = put(value)
    assert list(references_in_json(orjson.dumps(filled))) == references_in(filled)
