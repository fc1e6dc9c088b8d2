"""The examples of the language's page: their text, the input and the output that the page states, and what comes for
those that wait.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from flint_core.definition import compile_definition

__all__ = ["ELSEWHERE", "MAIL", "PAGE", "Example", "examples"]

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "definition-language.md"
_EXAMPLE: Final = re.compile(r"^```yaml\n(document:.*?)^```\n\n((?:[^\n]+\n)+)", re.MULTILINE | re.DOTALL)
_GIVES: Final = re.compile(r"gives `([\[{\"].*?)`[\s.:;,(]|gives `([\[{\"].*?)`$")
_INPUT: Final = re.compile(r"--input '(.*?)'")

PARCEL: Final = {"specversion": "1.0", "source": "s", "type": "com.example.parcel.packed"}
MAIL: Final[dict[str, list[Any]]] = {
    "collect-parcels": [
        PARCEL | {"id": "1", "data": {"order": 7, "weight": 4}},
        PARCEL | {"id": "2", "data": {"order": 8, "weight": 9}},
        PARCEL | {"id": "3", "data": {"order": 7, "weight": 6}},
    ],
    "each-parcel": [
        PARCEL | {"id": "11", "data": {"weight": 4}},
        PARCEL | {"id": "12", "data": {"weight": 6, "last": True}},
    ],
    "ask-first": [{"decision": "approved", "by": "ada", "comment": "", "fields": {"account": "petty"}, "at": ""}],
}
"""What comes for the awaits of an example, by its name: events, or a decision."""


ELSEWHERE: Final[dict[str, str]] = {
    "parent": "tests/integration/scheduler/test_scheduler_children.py",
    "count-in-a-container": "tests/contract/executors/test_executors_container.py",
    "shop-goods": "tests/integration/language/test_language_http.py",
    "send-form": "tests/integration/language/test_language_http.py",
    "find-pets": "tests/integration/language/test_language_services.py",
    "greet-by-grpc": "tests/integration/protocols/test_protocols_runs.py",
    "order-messages": "tests/integration/protocols/test_protocols_runs.py",
    "ask-tool": "tests/integration/protocols/test_protocols_runs.py",
    "ask-agent": "tests/integration/protocols/test_protocols_runs.py",
    "thumbnail": "tests/integration/functions/test_functions_calls.py",
    "signed-in": "tests/integration/language/test_language_authentication.py",
    "from-a-catalog": "tests/integration/gateway/test_public_reuse.py",
    "nightly": "tests/integration/schedules/test_schedules_stack.py",
    "ship-paid-orders": "tests/integration/schedules/test_schedules_stack.py",
    "reminders": "tests/integration/schedules/test_schedules_stack.py",
    "nightly-report": "tests/integration/queueing/test_queueing_stack.py",
    "bill-customer": "tests/integration/permits/test_permits_stack.py",
    "pay-once": "tests/integration/language/test_language_use.py",
    "book-trip": "tests/integration/language/test_language_use.py",
}
"""Examples that name an outside of their own, or fail on purpose: where what they show is executed by the engine."""


class Example(NamedTuple):
    """A definition of the page that says what it gives. `functions`: what its tasks call."""

    source: str
    input: Any
    output: Any
    functions: frozenset[str]


def examples() -> dict[str, Example]:
    """By name, those of the page whose text says «gives `…`»."""
    found: dict[str, Example] = {}
    for match in _EXAMPLE.finditer(PAGE.read_text(encoding="utf-8")):
        text = match[2].replace("\n", " ")
        gives = _GIVES.search(text)
        program = compile_definition(match[1]).program
        if gives is None or program is None:
            continue
        given = _INPUT.search(text)
        data = orjson.loads(given[1]) if given else {}
        functions = frozenset(task.function for task in program.tasks)
        found[program.workflow_id] = Example(match[1], data, orjson.loads(gives[1] or gives[2]), functions)
    return found
