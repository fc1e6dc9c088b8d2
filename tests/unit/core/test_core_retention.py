"""`metadata.flint.retention`: compiled to seconds, refused with its place when it is not a sensible time."""

from __future__ import annotations

from typing import Any

import pytest

from flint_core.definition import compile_definition
from flint_core.program import Program
from flint_scheduler.retention import FOR_EVER, keep_s_of
from flint_store.definitions import retention_of

DOCUMENT = """
document: {{dsl: 1.0.3, namespace: default, name: kept, version: 1.0.0, metadata: {{flint: {{retention: {value}}}}}}}
do: [{{nothing: {{set: {{a: 1}}}}}}]
"""


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("{days: 7}", 604_800), ("PT1H", 3600), ("forever", 0), ("{days: 36500}", 36_500 * 86_400), ("P1Y", 31_536_000)],
)
def test_a_workflow_says_how_long_its_runs_are_kept(value: str, seconds: int) -> None:
    compiled: Any = compile_definition(DOCUMENT.format(value=value))
    program = compiled.program
    assert program.retention_s == seconds
    assert retention_of(program.encode()) == seconds
    assert Program.decode(program.encode()).retention_s == seconds


@pytest.mark.parametrize("value", ["{minutes: 59}", "{days: 40000}", "for a while", "12", "{}", "true", "[]"])
def test_what_is_no_sensible_time_is_refused_with_its_place(value: str) -> None:
    compiled: Any = compile_definition(DOCUMENT.format(value=value))
    assert compiled.program is None
    assert {f.pointer for f in compiled.findings} == {"/document/metadata/flint/retention"}


def test_a_program_that_says_nothing_is_what_it_was() -> None:
    compiled: Any = compile_definition(
        "document: {dsl: 1.0.3, namespace: default, name: kept, version: 1.0.0}\ndo: [{nothing: {set: {a: 1}}}]\n"
    )
    assert b"retention" not in compiled.program.encode()
    assert retention_of(compiled.program.encode()) is None


def test_the_workflow_goes_before_the_namespace_and_that_before_the_cluster() -> None:
    assert keep_s_of(100.0, 0, None) == 100.0
    assert keep_s_of(100.0, 2, None) == 172_800
    assert keep_s_of(100.0, FOR_EVER, None) == 0
    assert keep_s_of(0.0, 0, 3600) == 3600
    assert keep_s_of(100.0, 2, 0) == 0
