"""Lending of slots keeps its promises under all rules, and breaks one without any of them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from model.lending.moves import PROPERTIES, LendingModel
from model.lending.scenarios import BROKEN, COMPLETE
from model.lending.state import LendingRules
from model.search import explore

_LIMIT = 200_000


@pytest.mark.parametrize("name", COMPLETE)
def test_lending_with_all_rules_on(name: str) -> None:
    result = explore(LendingModel(**COMPLETE[name]), limit=_LIMIT)
    assert not result.violation, "\n".join(result.trace)
    assert result.complete


@pytest.mark.parametrize("name", BROKEN)
def test_lending_without_a_rule_break_a_promise(name: str) -> None:
    broken, rules, options = BROKEN[name]
    result = explore(LendingModel(rules, **options), limit=_LIMIT)
    assert result.violation.startswith(f"{broken}:"), f"found {result.verdict} in {result.states} states"
    assert result.trace[-1] == f"=> {result.violation}"


def test_every_rule_of_lending_is_switched_off_and_every_property_breaks() -> None:
    off = {f.name for f in fields(LendingRules) for _, rules, _ in BROKEN.values() if not getattr(rules, f.name)}
    assert off == {f.name for f in fields(LendingRules)}
    assert {broken for broken, _, _ in BROKEN.values()} == PROPERTIES.keys()
