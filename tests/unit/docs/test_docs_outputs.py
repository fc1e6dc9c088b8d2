"""What the page says that its examples give is what they give, as far as that needs nothing but the machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from flint_core.definition import compile_definition
from flint_core.effects import Await, Call
from flint_core.machine import Machine, MachineLimits
from flint_core.problems import Problem, ProblemType
from support.machines import FACTS, Driver

PAGE = Path(__file__).resolve().parents[3] / "docs" / "definition-language.md"
_EXAMPLE = re.compile(r"^```yaml\n(document:.*?)^```\n\n((?:[^\n]+\n)+)", re.MULTILINE | re.DOTALL)
_GIVES = re.compile(r"gives `([\[{\"].*?)`[\s.:;,(]|gives `([\[{\"].*?)`$")
_INPUT = re.compile(r"--input '(.*?)'")
_ALONE = frozenset({"noop", "emit", "approval", "", "workflow"})

PARCEL = {"specversion": "1.0", "source": "s", "type": "com.example.parcel.packed"}
MAIL: dict[str, list[Any]] = {
    "collect-parcels": [
        PARCEL | {"id": "1", "data": {"order": 7, "weight": 4}},
        PARCEL | {"id": "2", "data": {"order": 8, "weight": 9}},
        PARCEL | {"id": "3", "data": {"order": 7, "weight": 6}},
    ],
    "each-parcel": [
        PARCEL | {"id": "1", "data": {"weight": 4}},
        PARCEL | {"id": "2", "data": {"weight": 6, "last": True}},
    ],
    "ask-first": [{"decision": "approved", "by": "ada", "comment": "", "fields": {"account": "petty"}, "at": ""}],
}
"""What comes for the awaits of an example, by its name."""


def examples() -> dict[str, tuple[str, Any, Any]]:
    """Name to source, input and output, of examples with an output that need no service."""
    found: dict[str, tuple[str, Any, Any]] = {}
    for match in _EXAMPLE.finditer(PAGE.read_text(encoding="utf-8")):
        text = match[2].replace("\n", " ")
        gives = _GIVES.search(text)
        program = compile_definition(match[1]).program
        if gives is None or program is None or not {task.function for task in program.tasks} <= _ALONE:
            continue
        given = _INPUT.search(text)
        data = orjson.loads(given[1]) if given else {}
        found[program.workflow_id] = (match[1], data, orjson.loads(gives[1] or gives[2]))
    return found


EXAMPLES = examples()


def outcome(call: Call) -> Any:
    if call.function == "emit":
        return call.arguments["event"]
    fail = call.arguments.get("fail")
    if fail is not None:
        return Problem(fail.get("type", ProblemType.RUNTIME), fail["status"], fail.get("title", "Failed"))
    return call.arguments.get("output")


def took(driver: Driver, call: Call) -> int:
    return int(call.arguments.get("delay_ms", driver.took_ms))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_the_page_says(name: str) -> None:
    source, data, output = EXAMPLES[name]
    program = compile_definition(source).program
    assert program is not None

    def mail(effect: Await) -> list[Any]:
        return MAIL[name]

    whole = MachineLimits(payload_bytes=2**26, state_bytes=2**26)  # this driver has no store for large values
    driver = Driver(Machine.start(program, FACTS, data, 1_000, whole), outcome, duration=took, mail=mail)
    assert driver.run().output == output


def test_the_examples_of_what_awaits_are_among_them() -> None:
    assert set(MAIL) <= set(EXAMPLES)
    assert len(EXAMPLES) > 8
