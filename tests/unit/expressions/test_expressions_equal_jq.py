"""The fast path against real jq: the same expression on the same data gives the same result, or fails in both."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flint_core.expressions import ExpressionFault, compile_expression
from flint_core.expressions.work import Budget
from support.random_expressions import NAMES, NOW_MS, documents, expressions, is_fast, program

FAILED = "failed"


def by_jq(source: str, document: Any, variables: dict[str, Any]) -> Any:
    try:
        compiled = program(source)
    except ValueError as error:
        pytest.fail(f"jq does not compile {source!r}, which the fast path takes: {error}")
    try:
        text = compiled.input_text(orjson.dumps([document, variables, NOW_MS]).decode()).first()
    except ValueError:
        return FAILED, None
    results = orjson.loads(text)
    assert len(results) <= 1, source
    return "ok", results[0] if results else None


def by_flint(source: str, document: Any, variables: dict[str, Any]) -> Any:
    expression = compile_expression(source, variables=frozenset(NAMES))
    assert expression.fast, source
    try:
        value = expression.evaluate(document, variables, NOW_MS)
        # Metered it is the same; a float that is not a number equals nothing, hence the texts.
        assert repr(expression.evaluate(document, variables, NOW_MS, Budget())) == repr(value)
        return "ok", value
    except ExpressionFault:
        return FAILED, None


def same_numbers(value: Any) -> Any:
    """1e17 and 100000000000000000 are one JSON number; what jq passes on it may write either way."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [same_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: same_numbers(item) for key, item in value.items()}
    return value


def assert_equal(source: str, document: Any, variables: dict[str, Any] | None = None) -> None:
    variables = variables or {"a": 1, "b": {"a": [1, 2]}, "x": "x"}
    ours, theirs = by_flint(source, document, variables), by_jq(source, document, variables)
    assert (ours[0], repr(same_numbers(ours[1]))) == (theirs[0], repr(same_numbers(theirs[1]))), source


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(expressions.filter(is_fast), documents, st.fixed_dictionaries(dict.fromkeys(NAMES, documents)))
def test_any_fast_expression_on_any_data(source: str, document: Any, variables: dict[str, Any]) -> None:
    assert_equal(source, document, variables)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "//", "and", "or"]),
    documents,
    documents,
)
@example("==", 2**53 + 1, float(2**53))
@example("-", [2**53 + 1, 1.0, None], [1, 2**53])
@example("*", "ab", 0.5)
@example("*", -1, "ab")
@example("%", -5, 3)
def test_operators_on_any_pair(operator: str, left: Any, right: Any) -> None:
    assert_equal(f".[0] {operator} .[1]", [left, right])
    assert_equal(f"(.[0] {operator} .[1]) | tostring", [left, right])


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents, documents)
def test_indexing_with_any_value(base: Any, key: Any) -> None:
    assert_equal(".[0][$a]", [base], {"a": key, "b": None, "x": None})
    assert_equal(".[0][$a:$b]", [base], {"a": key, "b": 2, "x": None})


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents)
def test_text_of_any_value(document: Any) -> None:
    for source in ("tostring", "tojson", '"v: \\(.)"', "length", "type", "keys", "[.] | tojson", "(. + .) | tojson"):
        assert_equal(source, document)


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_calculated_numbers_have_jqs_text(left: float, right: float) -> None:
    for operator in "+-*/":
        assert_equal(f"$a {operator} $b", None, {"a": left, "b": right, "x": None})
        assert_equal(f"[$a {operator} $b] | tojson", None, {"a": left, "b": right, "x": None})


@pytest.mark.parametrize(
    "source",
    [
        "1000 + 0",
        "now",
        "now | tostring",
        "now * 1000",
        "1 - 1 == 0",
        "2 * 3 + 4 * 5 - 6 / 4 % 3",
        "1 // 2 // 3",
        "null // false // 3",
        "false // false",
        "1 | 2 // 3 | 4",
        "true and true == false",
        ".a // 1 == 1",
        "[.a? // 2, .x?]",
        "[.[0]?, .a?, (.a | .b)?]",
        "{a: 1, b: 2 | 3}",
        "{a: .a // 1, b: .a == null, c: (.x and .y)}",
        '{"a": 1, "a": 2}',
        '{"a\\(1)": 2}',
        '{"a\\("b")"}',
        "{}",
        "[]",
        '"\\(1 + 1)"',
        '"a" + "b" == "ab"',
        "# a comment\n 1 # another",
        ". .a",
        ".a .b",
        '."a"."b"',
        '. "a"',
        ".a.[0]",
        '.["a"].["b"]',
        '."\\("a")"',
        "not.a?",
        "type[0:2]",
        "[1,2][1:][0]",
        "{a: {b: 1}}.a.b",
        "null.a",
        '"abc"[1:]',
        "-1",
        "-1 - -1",
        "2 * -1",
        "-5.5",
        "if . then 1 end",
        "if .a then 1 elif .b then 2 else 3 end.x?",
        "$x | 1",
        '"x" * 0',
        "[9007199254740993] == [9007199254740992]",
        "9007199254740993 == 9007199254740992 + 0",
        "1152921504606846976 + 0",
        "[1152921504606846976 + 0, {a: (0 - 0) * -1}] ",
        "100000000000000 * 100000000000000 | tostring",
        "1 / 3",
        '""',
        ". and .",
        "[.[1:2]?, .[:1]?]",
    ],
)
@pytest.mark.parametrize(
    "document", [None, {"a": {"b": [1]}}, [1, 2, 3], "text", 5], ids=["null", "{}", "[]", "s", "n"]
)
def test_shapes(source: str, document: Any) -> None:
    assert_equal(source, document)


@pytest.mark.parametrize(
    "source",
    [
        "map(.a)",
        ".[]",
        "..",
        "1, 2",
        ". as $y | $y",
        "reduce .[] as $i (0; . + $i)",
        "def f: 1; f",
        "try error catch .",
        '@base64 "x"',
        "@json",
        "$__loc__",
        ".a |= 1",
        "-.a",
        "-0",
        "1 == 1 == 1",
        "1e1000",
        "1.50",
        "input",
        "env",
        'has("a")',
        "{a: (1, 2)}",
        "[1 | 2, 3]",
        "label $out | 1",
    ],
)
def test_everything_else_is_left_to_jq(source: str) -> None:
    assert not compile_expression(source, variables=frozenset({"x"})).fast
