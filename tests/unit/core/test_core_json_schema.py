"""The JSON Schema of the language agrees with the compiler: on what is right, and on what is misspelled."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flint_core.definition import DefinitionLimits, compile_definition
from flint_core.definition.json_schema import described, workflow_schema
from flint_core.definition.reader import read

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = workflow_schema()
VALIDATOR = jsonschema_rs.validator_for(SCHEMA)
_BLOCK = re.compile(r"^```yaml\n(document:.*?)^```$", re.MULTILINE | re.DOTALL)


def definitions() -> dict[str, str]:
    """Every whole definition in the documentation and the examples."""
    found: dict[str, str] = {}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for number, match in enumerate(_BLOCK.finditer(page.read_text(encoding="utf-8"))):
            found[f"{page.name} {number}"] = match[1]
    for path in sorted((ROOT / "examples").rglob("workflow.yaml")):
        found[path.parent.name] = path.read_text(encoding="utf-8")
    return found


def plain(source: str) -> Any:
    return read(source, DefinitionLimits()).plain()


DEFINITIONS = definitions()
DOCUMENTS = {name: plain(source) for name, source in DEFINITIONS.items()}
HEAD = "document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}\n"

# Members of these hold what the author likes: names, values, schemas.
FREE = frozenset(
    {"set", "as", "from", "data", "body", "output", "parameters", "arguments", "metadata", "document", "form", "expect",
     "input", "headers", "query", "environment", "variables", "tags", "labels", "with", "use", "ports", "volumes"}
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of the objects that have members of the language, whole document and tasks first of all."""
    if isinstance(value, dict):
        yield path
        for name, member in value.items():
            if name not in FREE:
                yield from places(member, (*path, name))
    elif isinstance(value, list):
        for position, member in enumerate(value):
            yield from places(member, (*path, position))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


@pytest.mark.parametrize("name", DEFINITIONS)
def test_what_compiles_validates(name: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(DOCUMENTS[name])] == []


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_misspelled_does_not_validate(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(DOCUMENTS)))
    document = copy.deepcopy(DOCUMENTS[name])
    path = data.draw(st.sampled_from(list(places(document))))
    kind = data.draw(st.sampled_from(["unknown member", "wrong type"]))
    if kind == "unknown member":
        at(document, path)["noSuchMember"] = {"x": 1}
    elif path:
        at(document, path[:-1])[path[-1]] = 7
    else:
        document = [document]
    refused = not VALIDATOR.is_valid(document)
    compiled = compile_definition(json.dumps(document))
    accepted = compiled.program is not None or bool(compiled.needs)
    assert refused or accepted, (name, path, kind)


MISTAKES = {
    "member of a task": "do:\n  - t: {call: noop, timout: {after: PT1S}}\n",
    "no kind": "do:\n  - t: {timeout: {after: PT1S}}\n",
    "two kinds": "do:\n  - t: {set: {x: 1}, wait: PT1S}\n",
    "two names": "do:\n  - {a: {wait: PT1S}, b: {wait: PT1S}}\n",
    "duration": "do:\n  - t: {wait: 5 seconds}\n",
    "unit": "do:\n  - t: {wait: {second: 5}}\n",
    "argument": "do:\n  - t: {call: http, with: {method: get, endpont: 'http://x'}}\n",
    "missing argument": "do:\n  - t: {call: http, with: {method: get}}\n",
    "no arguments": "do:\n  - t: {call: http}\n",
    "policy": "do:\n  - t: {call: http, with: {method: get, endpoint: {uri: x, authentication: {basic: {user: x}}}}}\n",
    "run of two": "do:\n  - t: {run: {shell: {command: x}, workflow: {name: y}}}\n",
    "language": "do:\n  - t: {run: {script: {language: ruby, code: x}}}\n",
    "backoff": "do:\n  - t: {try: [{a: {wait: PT1S}}], catch: {retry: {backoff: {quadratic: {}}}}}\n",
    "listen": "do:\n  - t: {listen: {to: {one: {with: {type: x}}, all: [{with: {type: x}}]}}}\n",
    "event attribute": "do:\n  - t: {emit: {event: {with: {type: x, Subject: y}}}}\n",
    "hint": "do:\n  - t: {wait: PT1S, metadata: {flint: {paralel: 3}}}\n",
    "extension": "use: {extensions: [{e: {extend: cal, before: [{a: {set: {}}}]}}]}\ndo: [{t: {wait: PT1S}}]\n",
    "version": "do: [{t: {wait: PT1S}}]\n",
}


@pytest.mark.parametrize("what", MISTAKES)
def test_both_refuse_a_mistake(what: str) -> None:
    head = HEAD.replace("version: 1.0.0", "version: one") if what == "version" else HEAD
    source = head + MISTAKES[what]
    assert compile_definition(source).program is None
    assert not VALIDATOR.is_valid(plain(source))


RIGHT = {
    "names of use": "do:\n  - t: {timeout: long, call: own, with: {a: 1}}\n",
    "a policy by name": "do:\n  - t: {call: http, with: {method: get, endpoint: {uri: x, authentication: shop}}}\n",
    "arguments by expression": "do:\n  - t: {call: http, with:"
    " {method: '${ .m }', endpoint: '${ .e }', query: '${ .q }'}}\n",
    "custom function": "do:\n  - t: {call: 'team/resize:1.0.0', with: {any: thing}}\n",
    "raise by name": "do:\n  - t: {raise: {error: gone}}\n",
    "messages": "do:\n  - t: {call: asyncapi, with: {document: {endpoint: 'http://x'}, channel: c,"
    " subscription: {filter: .a, consume: {until: .b}}}}\n",
    "duration by expression": "do:\n  - t: {wait: '${ .pause }'}\n  - u: {wait: {seconds: '${ .n }'}}\n",
}


@pytest.mark.parametrize("what", RIGHT)
def test_what_stands_for_something_else_validates(what: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(plain(HEAD + RIGHT[what]))] == []


def test_one_mistake_in_a_task_is_one_message() -> None:
    source = HEAD + "do:\n  - t: {call: http, with: {method: get, endpoint: 'http://x'}, timout: {after: PT1S}}\n"
    messages = [error.message for error in VALIDATOR.iter_errors(plain(source))]
    assert len(messages) == 1
    assert "'timout' was unexpected" in messages[0]


def test_a_member_that_nobody_described_is_an_error() -> None:
    with pytest.raises(ValueError, match="novel"):
        described("a task", {"novel"}, {}, [])
