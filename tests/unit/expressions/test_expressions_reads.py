"""What an expression reads: what it surely does not read may be anything, or a reference, and makes no difference."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flint_core.engine.dataflow import _looks_into_reference, _needed
from flint_core.expressions import ExpressionFault, compile_expression
from flint_core.expressions.reads import needed
from flint_core.payloads import Reference, fill
from support.random_expressions import NAMES, NOW_MS, documents, expressions, is_fast, program

FAILED = object()


def evaluated(source: str, document: Any, variables: dict[str, Any]) -> Any:
    try:
        return compile_expression(source, variables=frozenset(NAMES)).evaluate(document, variables, NOW_MS)
    except ExpressionFault:
        return FAILED


class Store(dict[Reference, Any]):
    """Puts references in the place of what was chosen, and back."""

    def kept(self, value: Any, draw: st.DrawFn) -> Any:
        if type(value) in (dict, list) and value and draw(st.booleans()):
            data = orjson.dumps(value)
            reference = Reference(hashlib.sha256(data).hexdigest(), len(data))
            self[reference] = value
            return reference.to_json()
        if type(value) is dict:
            return {key: self.kept(member, draw) for key, member in value.items()}
        return [self.kept(item, draw) for item in value] if type(value) is list else value

    def whole(self, value: Any) -> Any:
        return value if value is FAILED else fill(value, self.__getitem__)


@st.composite
def stored(draw: st.DrawFn) -> tuple[Store, Any, dict[str, Any]]:
    store = Store()
    document = store.kept(draw(documents), draw)
    return store, document, {name: store.kept(draw(documents), draw) for name in NAMES}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(expressions.filter(is_fast), stored())
def test_references_that_are_not_looked_into_and_what_is_not_needed_make_no_difference(source: str, given: Any) -> None:
    store, document, variables = given
    part = compile_expression(source, variables=frozenset(NAMES))
    seen = {name: variables[name] for name in part.names}
    expected = repr(evaluated(source, store.whole(document), store.whole(variables)))
    if not _looks_into_reference(part, document, seen):
        assert repr(store.whole(evaluated(source, document, seen))) == expected
    document, seen = _needed(part, document, seen)
    assert repr(evaluated(source, store.whole(document), store.whole(seen))) == expected


@pytest.mark.parametrize(
    ("source", "looks"),
    [
        ("{n: $b.n, all: .}", False),
        ('.url + "/steps"', False),
        ("{items, first: {second: .items}}", False),
        ("if .n > 1 then .items else [] end", False),
        (".items | length", True),
        ("{items} | .items | length", True),
        (".items[0]", True),
        (".items // []", True),
        ('"\\(.items)"', True),
        ("[.items] == []", True),
    ],
)
def test_walking_past_or_handing_on_is_not_looking(source: str, looks: bool) -> None:
    document = {"n": 1, "url": "http://a", "items": Reference("0" * 64, 10**6).to_json()}
    part = compile_expression(source, variables=frozenset(NAMES))
    assert part.fast
    assert _looks_into_reference(part, document, {"b": {"n": 1}}) is looks


@pytest.mark.parametrize(
    ("source", "unread"),
    [
        ("$b.text | ascii_upcase", True),
        ("[$b.values[] | select(. > 3)] | add", True),
        ("($b.values | map(.x)) | first", True),
        ("$b | def f: .; f", True),
        ("map(.x)", False),
        ("$b as $c | .", False),
        ("$b, . | ascii_upcase", False),
        ("[.[] | $b] | add", False),
        ("$b[.x] | ascii_upcase", False),
        ("def f: $b; f | .", False),
        ("[$b.a, (.b | map(.c))]", False),
        ("if $b | ascii_upcase then 1 else . end", False),
        ("label $out | $b | ascii_upcase", False),
        ("reduce $b[] as $c (0; . + $c)", False),
        ("[$b][] as $c | .a | ascii_upcase", False),
    ],
)
def test_jq_is_not_given_an_input_that_it_cannot_read(source: str, unread: bool) -> None:
    part = compile_expression(source, variables=frozenset(NAMES))
    assert not part.fast
    document, seen = _needed(part, {"a": 1}, {"b": {"c": 2}})
    assert (document is None) is unread
    assert seen == {"b": {"c": 2}}


def texts(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    forms = ("[{}]", "({})", "[({})[]?]", "{} | {}", "{}, {}", "[{} | {}] | add", "{} as $c | {}", "first({}) | {}")
    return st.one_of(
        *(st.tuples(*[inner] * form.count("{}")).map(lambda parts, form=form: form.format(*parts)) for form in forms)
    )


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.recursive(expressions, texts, max_leaves=4), documents, documents, documents)
@example("$a as $c | .", None, 1, {})
def test_what_jq_gives_does_not_depend_on_what_is_not_read(source: str, document: Any, other: Any, value: Any) -> None:
    part = compile_expression(source, variables=frozenset(NAMES))
    if part.fast or part.reads is None or any(read.root is None for read in part.reads):
        return

    def by_jq(data: Any) -> Any:
        try:
            return (
                program(source).input_text(orjson.dumps([data, dict.fromkeys(NAMES, value), NOW_MS]).decode()).first()
            )
        except ValueError:
            return FAILED

    assert by_jq(document) == by_jq(other)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.recursive(expressions, texts, max_leaves=4), documents, documents, documents)
@example(".a | map(. + $b.c)", {"a": [1]}, {"c": 2, "d": 3}, {})
@example('.a | ascii_upcase + "\\($b.c)"', {"a": "x", "b": 1}, {"c": 2, "d": 3}, {})
@example("[.a.b | ascii_upcase] | [$b, .]", {"a": {"b": "x", "c": 1}}, {"c": 2, "d": 3}, {})
@example("$b.c | ascii_upcase", {"a": 1}, {"c": "x", "d": 3}, {})
def test_jq_gives_the_same_without_what_is_not_read(source: str, document: Any, value: Any, other: Any) -> None:
    part = compile_expression(source, variables=frozenset(NAMES))
    if part.fast or part.reads is None:
        return

    def by_jq(data: Any, variables: dict[str, Any]) -> Any:
        try:
            return program(source).input_text(orjson.dumps([data, variables, NOW_MS]).decode()).first()
        except ValueError:
            return FAILED

    roots = {read.root for read in part.reads}
    variables = {name: value if number % 2 else other for number, name in enumerate(NAMES)}
    read = {name: needed(given, name, part.reads) if name in roots else None for name, given in variables.items()}
    assert by_jq(document, variables) == by_jq(needed(document, None, part.reads) if None in roots else None, read)
