"""What an expression's text tells without evaluating it, and templates."""

from __future__ import annotations

from typing import Any

import pytest

from flint_core.effects import Deferred
from flint_core.expressions import (
    ExpressionFault,
    ExpressionSyntaxError,
    TemplateSyntaxError,
    compile_expression,
    compile_template,
)

VARIABLES = frozenset({"context", "input", "secrets", "steps"})


@pytest.mark.parametrize("text", ["${ .a }", "${.a}", "  ${ .a }  ", ".a", ' ${ {a: "}"}.a | .b } '])
def test_the_braces_are_optional(text: str) -> None:
    expression = compile_expression(text, variables=VARIABLES)
    assert expression.fast
    assert not expression.source.startswith("${")


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("", 0),
        ("   ", 0),
        ("${ }", 0),
        ("${ .a", 5),
        ("(.a", 0),
        (".a)", 2),
        ("[.a}", 3),
        ('"abc', 0),
        ('"\\x"', 1),
        ('"\\ud83d"', 1),
        (".a ~ 1", 3),
        ("$nobody", 0),
        (".a | $nobody.b", 5),
        ('"\\($nobody)"', 3),
        ("map($nobody)", 4),
        ("$ENV.HOME", 0),
        ("${ .a } ${ .b }", 7),
    ],
)
def test_errors_that_need_no_jq(text: str, offset: int) -> None:
    with pytest.raises(ExpressionSyntaxError) as raised:
        compile_expression(text, variables=VARIABLES)
    assert raised.value.offset == offset


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (".a", set()),
        ("$input.a + $steps.b", {"input", "steps"}),
        ("map($context)", {"context"}),
        ('"\\($input) $steps"', {"input"}),
        ("{$input}", {"input"}),
        (". as $own | $own + $input", {"input"}),
        (". as {a: $own, $b} | $own + $b", set()),
        (". as [$own, [$b]] | $own + $b", set()),
        ("reduce .[] as $own (0; . + $own)", set()),
        ("foreach .[] as [$own] (0; . + $own; [$own])", set()),
        ("def f($own): $own; f(1)", set()),
        ("label $out | 1, break $out", set()),
        ("# $nobody\n.a", set()),
        ("$__loc__", set()),
    ],
)
def test_names(text: str, names: set[str]) -> None:
    assert compile_expression(text, variables=VARIABLES).names == names


def test_an_expression_for_jq_is_not_evaluated_here() -> None:
    expression = compile_expression("map(.a)", variables=VARIABLES)
    assert not expression.fast
    with pytest.raises(ValueError, match="only jq"):
        expression.evaluate([], {}, 0)


def test_deep_nesting_is_no_danger() -> None:
    deep = compile_expression("(" * 20 + ".a" + ")" * 20, variables=VARIABLES)
    assert deep.evaluate({"a": 1}, {}, 0) == 1
    assert not compile_expression("(" * 90 + ".a" + ")" * 90, variables=VARIABLES).fast
    assert not compile_expression('"\\(' * 90 + ".a" + ')"' * 90, variables=VARIABLES).fast
    with pytest.raises(ExpressionSyntaxError):
        compile_expression("(" * 100_000, variables=VARIABLES)
    assert not compile_expression(" + ".join(["1"] * 5000), variables=VARIABLES).fast
    value: Any = 1
    for _ in range(5000):
        value = [value]
    with pytest.raises(ExpressionFault):
        compile_expression(". == .", variables=VARIABLES).evaluate(value, {}, 0)


def test_large_repetitions_are_refused() -> None:
    with pytest.raises(ExpressionFault):
        compile_expression('"x" * 1000000000', variables=VARIABLES).evaluate(None, {}, 0)


def evaluate(template: Any, data: Any, parts: tuple[Any, ...] = (), **variables: Any) -> Any:
    return compile_template(template, variables=VARIABLES).evaluate(data, variables, 0, parts)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("${ .n }", 5),
        (" ${ .n } ", 5),
        ("${ .list }", [1, 2]),
        ("${ .missing }", None),
        ("n=${ .n }", "n=5"),
        ("${ .n }${ .s }", "5text"),
        ("${ .s }!", "text!"),
        ("v: ${ .list } ${ .missing } ${ .yes }", "v: [1,2] null true"),
        ({"a": ["${ .n }", {"b": "${ .s }"}], "${ .n }": 1}, {"a": [5, {"b": "text"}], "${ .n }": 1}),
        ('${ "}" }', "}"),
        ("costs $5 {x}", "costs $5 {x}"),
    ],
)
def test_templates(template: Any, expected: Any) -> None:
    assert evaluate(template, {"n": 5, "s": "text", "list": [1, 2], "yes": True}) == expected


def test_constant_templates_are_known() -> None:
    assert compile_template({"a": [1, "b"]}, variables=VARIABLES).constant
    assert not compile_template({"a": "${ 1 }"}, variables=VARIABLES).constant


def test_parts_are_filled_in() -> None:
    template = compile_template(["${ map(.a) }", "x ${ .[] } ${ .n }"], variables=VARIABLES)
    assert not template.fast
    assert [part.source for part in template.parts] == ["map(.a)", ".[]"]
    assert template.evaluate({"n": 1}, {}, 0, [[1], {"k": 2}]) == [[1], 'x {"k":2} 1']
    with pytest.raises(ValueError, match="2 expressions"):
        template.evaluate({"n": 1}, {}, 0)


def test_secrets_are_deferred() -> None:
    value = evaluate({"h": "Bearer ${ $secrets.token }", "p": '${ $secrets["my key"] + $input }'}, {"n": 1}, input="i")
    assert value["h"] == Deferred("Bearer ${ $secrets.token }", True, {"n": 1}, {}, ("token",))
    assert value["p"] == Deferred('$secrets["my key"] + $input', False, {"n": 1}, {"input": "i"}, ("my key",))
    assert evaluate("${ $secrets | keys }", None).secrets == ("*",)


def test_an_error_in_a_template_says_where() -> None:
    with pytest.raises(TemplateSyntaxError) as raised:
        compile_template({"a": [0, {"b/c": "ok ${ $nobody }"}]}, variables=VARIABLES)
    assert (raised.value.pointer, raised.value.offset) == ("/a/1/b~1c", 6)
