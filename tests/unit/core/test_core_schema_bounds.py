"""Schemas that would check one value for ever are told from those that are only long."""

import json

import jsonschema_rs
import pytest

from flint_core.definition import compile_definition
from flint_core.functions import FUNCTIONS
from flint_core.plan import Schema
from flint_core.schema_bounds import SchemaTooCostly, check_bounds


def _doubling(levels: int, name: str = "allOf", anchors: bool = False) -> dict:
    def to(level: int) -> str:
        return f"#a{level}" if anchors else f"#/$defs/a{level}"

    chain = {f"a{n}": {name: [{"$ref": to(n + 1)}, {"$ref": to(n + 1)}]} for n in range(levels)}
    chain[f"a{levels}"] = {"type": "object"}
    if anchors:
        chain = {key: {"$anchor": key, **value} for key, value in chain.items()}
    return {"$ref": to(0), "$defs": chain}


@pytest.mark.parametrize("name", ["allOf", "anyOf", "oneOf"])
@pytest.mark.parametrize("anchors", [False, True])
def test_references_that_double_are_refused(name, anchors):
    with pytest.raises(SchemaTooCostly, match="more than 10000 checks"):
        check_bounds(_doubling(30, name, anchors))
    check_bounds(_doubling(8, name, anchors))


def test_doubling_by_identities_and_where_no_reference_leads_is_found():
    parts = {
        f"a{n}": {"$id": f"https://flint.test/a{n}", "not": {"allOf": [{"$ref": f"a{n + 1}"}, {"$ref": f"a{n + 1}"}]}}
        for n in range(30)
    }
    with pytest.raises(SchemaTooCostly):
        check_bounds({"properties": {"x": {"$defs": parts, "$ref": "https://flint.test/a0"}}})


def test_an_identity_that_the_draft_ignores_hides_nothing():
    hidden = _doubling(30)
    for part in hidden["$defs"].values():
        part["id"] = "https://elsewhere.test/"
    with pytest.raises(SchemaTooCostly):
        check_bounds(hidden)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}},
        {"allOf": [{"$dynamicRef": "#me"}], "$dynamicAnchor": "me"},
    ],
)
def test_a_reference_to_itself_in_place_is_refused(schema):
    with pytest.raises(SchemaTooCostly, match="never end"):
        check_bounds(schema)


def test_recursion_through_parts_of_a_value_is_free():
    tree = {
        "type": "object",
        "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "all": {"items": {"$ref": "#"}}},
    }
    check_bounds(tree)
    assert Schema(tree).first_error({"left": {"right": {}}, "all": [{}]}) is None


def test_a_long_chain_and_many_alternatives_are_only_long():
    chain = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(5_000)} | {"a5000": {"type": "string"}}
    check_bounds({"$ref": "#/$defs/a0", "$defs": chain})
    check_bounds({"anyOf": [{"const": n} for n in range(5_000)]})


def test_what_is_used_everywhere_is_within_the_bound():
    for spec in FUNCTIONS.values():
        check_bounds(spec.schema)
        check_bounds(spec.resolved)
    check_bounds(True)
    check_bounds({"$ref": "https://json-schema.org/draft/2020-12/schema"})


def test_schema_refuses_before_it_checks_anything():
    with pytest.raises(ValueError, match="multiply"):
        Schema(_doubling(30))
    assert issubclass(jsonschema_rs.ValidationError, ValueError)


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"input": {"schema": {"document": _doubling(30)}}}, "/input/schema/document"),
        (
            {"do": [{"ask": {"call": "approval", "with": {"title": "Pay?", "form": _doubling(30)}}}]},
            "/do/0/ask/with/form",
        ),
    ],
)
def test_the_compiler_says_where(members, pointer):
    head = {"document": {"dsl": "1.0.3", "namespace": "default", "name": "demo", "version": "1.0.0"}}
    definition = {**head, "do": [{"a": {"set": {"x": 1}}}], **members}
    compiled = compile_definition(json.dumps(definition))
    found = [finding for finding in compiled.findings if "multiply" in finding.message]
    assert [finding.pointer for finding in found] == [pointer]
    assert compiled.program is None
