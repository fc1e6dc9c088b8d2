"""Moves of shard groups keep their promises under all rules, and break one without any of them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from model.groups.moves import PROPERTIES, GroupModel
from model.groups.scenarios import BROKEN, COMPLETE
from model.groups.state import GroupRules
from model.search import explore

_LIMIT = 200_000


@pytest.mark.parametrize("name", COMPLETE)
def test_groups_with_all_rules_on(name: str) -> None:
    result = explore(GroupModel(**COMPLETE[name]), limit=_LIMIT)
    assert not result.violation, "\n".join(result.trace)
    assert result.complete


@pytest.mark.parametrize("name", BROKEN)
def test_groups_without_a_rule_break_a_promise(name: str) -> None:
    broken, rules, options = BROKEN[name]
    result = explore(GroupModel(rules, **options), limit=_LIMIT)
    assert result.violation.startswith(f"{broken}:"), f"found {result.verdict} in {result.states} states"
    assert result.trace[-1] == f"=> {result.violation}"


def test_every_rule_of_groups_is_switched_off_and_every_property_breaks() -> None:
    off = {f.name for f in fields(GroupRules) for _, rules, _ in BROKEN.values() if not getattr(rules, f.name)}
    assert off == {f.name for f in fields(GroupRules)}
    assert {broken for broken, _, _ in BROKEN.values()} == PROPERTIES.keys()
