"""Tests of workflows as files, `NAME.test.yaml`:

    workflow: order.yaml            # beside this file
    workflows: {child: child.yaml}  # sub-workflows
    secrets: {token: "x"}
    tests:
      - name: a failed payment is repeated
        input: {orderId: A-1}
        stubs:
          fetch: {output: {price: 10}}
          pay: [{fail: {status: 503}}, {output: {paid: true}}]
          decide: {approval: {decision: rejected, by: ada, after: PT2H}}
        events:
          - {type: order.shipped, data: {orderId: A-1}, after: P2D}
        expect:
          state: succeeded          # unless told, what fits the rest
          output: {paid: true}
          path: [fetch, pay, confirm]
          attempts: {pay: 2}
          error: {status: 503}      # members that the error has
          events: [{type: order.paid}]
          calls: {pay: [{amount: 10}, {amount: 10}]}
          elapsed: {at_least: PT1S, at_most: PT1M}
          waits_for: [decide]
          undone: [pay, fetch]      # compensated steps, in order

What is not named in `expect` is not looked at. Objects in `error`, `events` and `calls` match when their members do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flint_sdk.testing._kit import SimulationError, simulate
from flint_sdk.testing._result import Result
from flint_sdk.testing._stubs import Approval, Event, Failure, duration_ms

__all__ = ["SpecError", "TestCase", "load_spec", "run_case", "simulated"]

Count = Annotated[int, Field(ge=0)]


class SpecError(Exception):
    """A test file cannot be read: what is wrong, and where."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Fail(_Part):
    status: int = 500
    title: str = "Stubbed failure"
    detail: str = ""
    type: str = ""
    retry_after: Any = None


class _Approval(_Part):
    decision: Literal["approved", "rejected"] = "approved"
    by: str = "tester"
    comment: str = ""
    fields: dict[str, Any] = {}
    after: Any = 0


class _Stub(_Part):
    output: Any = None
    fail: _Fail | None = None
    approval: _Approval | None = None

    def value(self) -> Any:
        if self.fail is not None:
            return Failure(**self.fail.model_dump())
        return Approval(**self.approval.model_dump()) if self.approval is not None else self.output


class _Event(_Part):
    type: str
    data: Any = None
    source: str = "https://flint.test/source"
    id: str = ""
    subject: str = ""
    after: Any = 0
    attributes: dict[str, Any] = {}


class _Elapsed(_Part):
    at_least: Any = 0
    at_most: Any = None


class _Expect(_Part):
    state: Literal["succeeded", "failed", "cancelled", "waiting"] | None = None
    output: Any = None
    error: dict[str, Any] | None = None
    path: list[str] | None = None
    attempts: dict[str, Count] = {}
    states: dict[str, str] = {}
    events: list[dict[str, Any]] | None = None
    calls: dict[str, list[Any]] = {}
    elapsed: _Elapsed | None = None
    waits_for: list[str] | None = None
    undone: list[str] | None = None


class _Case(_Part):
    name: str
    input: Any = None
    stubs: dict[str, _Stub | list[_Stub]] = {}
    events: list[_Event] = []
    secrets: dict[str, str] = {}
    expect: _Expect


class _Spec(_Part):
    workflow: str
    workflows: dict[str, str] = {}
    secrets: dict[str, str] = {}
    tests: Annotated[list[_Case], Field(min_length=1)]


@dataclass(frozen=True)
class TestCase:
    """One test of a file."""

    __test__ = False  # pytest: not a class of tests

    file: Path
    name: str
    spec: _Spec
    case: _Case


def load_spec(file: Path) -> list[TestCase]:
    """The tests of a file. Raises SpecError."""
    try:
        document = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
        spec = _Spec.model_validate(document)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise SpecError(f"{file}: {error}") from None
    except ValidationError as error:
        lines = [f"{file}: {'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
        raise SpecError("\n".join(lines)) from None
    return [TestCase(file, case.name, spec, case) for case in spec.tests]


def run_case(test: TestCase) -> list[str]:
    """What is not as the test expects; nothing when it passed. A definition that is refused counts too."""
    try:
        result = simulated(test)
    except (SimulationError, OSError) as error:
        return [str(error)]
    return _differences(test.case.expect, result)


def simulated(test: TestCase) -> Result:
    """The run of a test. Raises SimulationError, OSError."""
    spec, case, folder = test.spec, test.case, test.file.parent
    stubs = {
        name: _script([each.value() for each in stub] if isinstance(stub, list) else [stub.value()])
        for name, stub in case.stubs.items()
    }
    return simulate(
        folder / spec.workflow,
        case.input,
        stubs=stubs,
        events=[Event(**event.model_dump()) for event in case.events],
        workflows={name: folder / path for name, path in spec.workflows.items()},
        secrets={**spec.secrets, **case.secrets},
    )


def _script(values: list[Any]) -> Any:
    """A stub that gives these one after the other, whatever they are."""
    left = list(values)

    def take(arguments: Any) -> Any:
        return left.pop(0) if len(left) > 1 else left[0]

    return take


def _differences(expect: _Expect, result: Result) -> list[str]:
    wrong: list[str] = []
    named = expect.model_fields_set
    state = expect.state
    if state is None and named & {"output", "error", "waits_for"}:
        state = "succeeded" if "output" in named else "failed" if "error" in named else "waiting"
    if state is not None and result.state != state:
        why = f": {_show(result.error)}" if result.error else ""
        waits = f", for {', '.join(result.waits_for)}" if result.waits_for else ""
        wrong.append(f"state: expected {state}, but it is {result.state}{waits}{why}")
        return wrong
    if "output" in named and result.output != expect.output:
        wrong.append(f"output: expected {_show(expect.output)}, but it is {_show(result.output)}")
    if expect.error is not None and not _matches(expect.error, result.error):
        wrong.append(f"error: expected {_show(expect.error)}, but it is {_show(result.error)}")
    if expect.path is not None and result.path != expect.path and result.leaves != expect.path:
        wrong.append(f"path: expected {_show(expect.path)}, but it is {_show(result.leaves)}")
    for name, count in expect.attempts.items():
        if result.attempts(name) != count:
            wrong.append(f"attempts of {name}: expected {count}, but there were {result.attempts(name)}")
    for name, wanted in expect.states.items():
        try:
            found = result.state_of(name)
        except KeyError:
            found = "not reached"
        if found != wanted:
            wrong.append(f"state of {name}: expected {wanted}, but it is {found}")
    if expect.events is not None and not _all_match(expect.events, result.events):
        wrong.append(f"events: expected {_show(expect.events)}, but it emitted {_show(result.events)}")
    for name, calls in expect.calls.items():
        made = [call.arguments for call in result.calls_of(name)]
        if not _all_match(calls, made):
            wrong.append(f"calls of {name}: expected {_show(calls)}, but there were {_show(made)}")
    if expect.elapsed is not None:
        wrong += _elapsed(expect.elapsed, result.elapsed_s)
    if expect.waits_for is not None and sorted(result.waits_for) != sorted(expect.waits_for):
        wrong.append(f"waits_for: expected {_show(expect.waits_for)}, but it waits for {_show(result.waits_for)}")
    if expect.undone is not None and result.undone != expect.undone:
        wrong.append(f"undone: expected {_show(expect.undone)}, but it is {_show(result.undone)}")
    return wrong


def _elapsed(expect: _Elapsed, elapsed_s: float) -> list[str]:
    low, high = duration_ms(expect.at_least), None if expect.at_most is None else duration_ms(expect.at_most)
    if elapsed_s * 1000 < low or (high is not None and elapsed_s * 1000 > high):
        limit = f"at least {low / 1000:g} s" + ("" if high is None else f" and at most {high / 1000:g} s")
        return [f"elapsed: expected {limit}, but it took {elapsed_s:g} s"]
    return []


def _all_match(expected: Sequence[Any], found: Sequence[Any]) -> bool:
    return len(expected) == len(found) and all(map(_matches, expected, found))


def _matches(expected: Any, found: Any) -> bool:
    if isinstance(expected, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and _matches(value, found[key]) for key, value in expected.items()
        )
    return bool(expected == found)


def _show(value: Any) -> str:
    text = orjson.dumps(value, default=list).decode()
    return text if len(text) <= 2_000 else f"{text[:2_000]}…"
