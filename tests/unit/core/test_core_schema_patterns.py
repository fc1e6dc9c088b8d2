"""Patterns of schemas are matched in linear time, and refused at apply when only backtracking could match them."""

from __future__ import annotations

import pytest

from flint_core.definition import compile_definition
from flint_core.plan import Schema

DEFINITION = """\
document: {dsl: 1.0.3, namespace: default, name: patterns, version: 1.0.0}
input:
  schema:
    document: {type: object, properties: {code: {type: string, pattern: '%s'}}}
do:
  - pass:
      set: {done: true}
"""


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "^(.*a){12}$", "^([a-z]+)*b?$"])
def test_catastrophic_patterns_are_matched_at_once(pattern: str) -> None:
    schema = Schema({"type": "string", "pattern": pattern})
    assert schema.first_error("a" * 100_000 + "!") is not None
    assert schema.first_error("a" * 20) is None


@pytest.mark.parametrize("pattern", ["(?=a)b", "(?<!a)b", r"(a)\\1", "("])
def test_what_only_backtracking_could_match_is_refused(pattern: str) -> None:
    pattern = pattern.replace("\\\\", "\\")
    for schema in ({"pattern": pattern}, {"patternProperties": {pattern: True}}):
        with pytest.raises(ValueError, match="linear time"):
            Schema({"type": "object", **schema})
    findings = compile_definition(DEFINITION % pattern).findings
    assert any("linear time" in finding.message and finding.line for finding in findings)


def test_formats_and_references_stay_what_they_were() -> None:
    assert Schema({"format": "date"}).first_error("2026-02-31") is not None
    with pytest.raises(ValueError):
        Schema({"$ref": "https://example.com/schema.json"})
