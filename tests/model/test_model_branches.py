"""Wide forks keep their promises under all rules, and break one without any of them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from model.branches.moves import PROPERTIES, BranchModel
from model.branches.scenarios import BROKEN, COMPLETE
from model.branches.state import BranchRules
from model.search import explore

_LIMIT = 200_000


@pytest.mark.parametrize("name", COMPLETE)
def test_all_rules_on(name: str) -> None:
    result = explore(BranchModel(**COMPLETE[name]), limit=_LIMIT)
    assert not result.violation, "\n".join(result.trace)
    assert result.complete


@pytest.mark.parametrize("name", BROKEN)
def test_without_a_rule_a_promise_breaks(name: str) -> None:
    broken, rules, shape = BROKEN[name]
    result = explore(BranchModel(rules, **shape), limit=_LIMIT)
    assert result.violation.startswith(f"{broken}:"), f"found {result.verdict} in {result.states} states"
    assert result.trace[-1] == f"=> {result.violation}"


def test_every_rule_is_switched_off_and_every_property_breaks() -> None:
    off = {f.name for f in fields(BranchRules) for _, rules, _ in BROKEN.values() if not getattr(rules, f.name)}
    assert off == {f.name for f in fields(BranchRules)}
    assert {broken for broken, _, _ in BROKEN.values()} == PROPERTIES.keys()
