"""The protocol keeps its promises under all of its rules, and breaks one without any of them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from model.properties import PROPERTIES
from model.rules import ALL_ON, Rules
from model.scenarios import BROKEN, COMPLETE, FULL
from model.search import explore

_LIMIT = 60_000


@pytest.mark.parametrize("name", COMPLETE)
def test_all_rules_on(name: str) -> None:
    result = explore(COMPLETE[name].model(), limit=_LIMIT)
    assert not result.violation, "\n".join(result.trace)
    assert result.complete


@pytest.mark.parametrize("name", BROKEN)
def test_without_a_rule_a_promise_breaks(name: str) -> None:
    broken, scenario = BROKEN[name]
    result = explore(scenario.model(), limit=_LIMIT)
    assert result.violation.startswith(f"{broken}:"), f"found {result.verdict} in {result.states} states"
    assert result.trace[-1] == f"=> {result.violation}"
    assert not any("another name" in label for label in result.trace), "the trace does not replay"


def test_every_rule_is_switched_off_somewhere() -> None:
    off = {f.name for f in fields(Rules) for _, s in BROKEN.values() if not getattr(s.rules, f.name)}
    assert off == {f.name for f in fields(Rules)}


def test_every_property_can_break() -> None:
    assert {broken for broken, _ in BROKEN.values()} == PROPERTIES.keys()


def test_rules_are_on_where_nothing_may_break() -> None:
    assert all(s.rules == ALL_ON for s in [*COMPLETE.values(), *FULL.values()])
