"""What the page says that its examples give is what they give, as far as that needs nothing but the machine."""

from __future__ import annotations

from typing import Any

import pytest

from flint_core.definition import compile_definition
from flint_core.effects import Await, Call
from flint_core.machine import Machine, MachineLimits
from flint_core.problems import Problem, ProblemType
from support.doc_examples import MAIL, examples
from support.machines import FACTS, Driver

_ALONE = frozenset({"noop", "emit", "approval", "", "workflow"})
EXAMPLES = {name: example for name, example in examples().items() if example.functions <= _ALONE}


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
    source, data, output, _ = EXAMPLES[name]
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
