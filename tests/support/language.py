"""Tables of small definitions, each with what it must give: run through a whole Flint, and in the workflow test kit.

All cases of a table are applied, started and awaited at once; the tests then look at what came out. In a body, `<name>`
is the workflow's name and `<http>` and its like are places of the outside world (`World.places`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from flint_sdk import Approval, DefinitionInvalid, FlintError, Run, RunState
from flint_sdk.testing import DefinitionRefused, Event, simulate
from support.house import House

__all__ = [
    "ANY",
    "SECRETS",
    "Case",
    "Outcome",
    "Refused",
    "check",
    "check_kit",
    "check_refused",
    "run_cases",
    "text_of",
]

AT_ONCE: Final = 48
"""Cases under way at the same time."""
CASE_S: Final = 120.0
SECRETS: Final = {
    "token": "t0ken-of-the-tests",
    "person": '{"username": "ada", "password": "s3cret"}',
    "bearer": '{"token": "t0ken-of-the-tests"}',
}


class _Any:
    """Equal to whatever it is compared with: for ids and times."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANY"


ANY: Final[Any] = _Any()
_UNSET: Final[Any] = object()


@dataclass(frozen=True)
class Case:
    """One definition and what it must give: an `output`, or an `error` with at least these members.

    `stubs`: what steps give in the workflow test kit; None: the case is about the outside and is not run there.
    `events` are published, in one call, once the run waits. `decide`: arguments of the decision on
    its approval. `attempts`: how often steps were tried. `children`: bodies of further workflows, `<name>-KEY`.
    """

    body: str
    output: Any = _UNSET
    error: Mapping[str, Any] | None = None
    input: Any = None
    stubs: Mapping[str, Any] | None = field(default_factory=dict)
    events: Sequence[Mapping[str, Any]] = ()
    decide: Mapping[str, Any] | None = None
    attempts: Mapping[str, int] = field(default_factory=dict)
    children: Mapping[str, str] = field(default_factory=dict)
    head: str = ""
    least_s: float = 0.0
    """It takes at least this long."""
    check: Callable[[House, Any, Run], Awaitable[None]] | None = None
    """What else must be true afterwards: of Flint, the outside world and the run."""


@dataclass(frozen=True)
class Refused:
    """A definition that apply refuses: by which rule, where (a JSON pointer), and a piece of the message."""

    body: str
    rule: str
    pointer: str
    message: str
    head: str = ""
    document: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a case came to: a run that ended, and how often each of its steps was tried; or what broke."""

    run: Run | None
    attempts: Mapping[str, int]
    broken: BaseException | None = None
    took_s: float = 0.0


_NOWHERE: Mapping[str, str] = {"http": "http://outside.test"}
"""Addresses for the kit, which reaches nothing."""


def text_of(case: Case | Refused, name: str, places: Mapping[str, str], body: str = "") -> str:
    """The whole document."""
    head = f"dsl: 1.0.3, namespace: default, name: {name}, version: 1.0.0"
    if case.head:
        head += f", {case.head}"
    text = f"document: {{{head}}}\n{body or case.body}"
    for place, value in {**places, "name": name}.items():
        text = text.replace(f"<{place}>", value)
    return text


async def run_cases(house: House, world: Any, cases: Mapping[str, Case], prefix: str) -> dict[str, Outcome]:
    """All cases through the engine, many at once; once for a Flint.

    Where a process runs the tests of a module in several portions, its fixtures are set up again for each. What the
    cases publish has been published then, and events that are repeated reach nobody.
    """
    if prefix in house.kept:
        return house.kept[prefix]
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(key: str, case: Case) -> Outcome:
        async with gate:
            try:
                async with asyncio.timeout(CASE_S):
                    return await _run(house, world, case, f"{prefix}-{key}".lower())
            except (FlintError, TimeoutError, AssertionError) as error:
                return Outcome(None, {}, error)

    outcomes = await asyncio.gather(*(one(key, case) for key, case in cases.items()))
    found = house.kept[prefix] = dict(zip(cases, outcomes, strict=True))
    return found


async def _run(house: House, world: Any, case: Case, name: str) -> Outcome:
    places = world.places
    for key, body in case.children.items():
        await house.flint.apply(text_of(case, f"{name}-{key}", {**places}, body.replace("<name>", name)))
    await house.flint.apply(text_of(case, name, places))
    loop = asyncio.get_running_loop()
    began = loop.time()
    handle = await house.flint.start(name, case.input)
    if case.events:
        await _until_waiting(house, handle.id)
        for published in await house.flint.publish_events(_envelopes(case, name)):
            assert not isinstance(published, FlintError), published
    if case.decide is not None:
        approval = await _approval(house, name)
        await house.flint.decide_approval(approval.id, **case.decide)
    run = await house.flint.wait(handle.id, CASE_S)
    took_s = loop.time() - began
    attempts: dict[str, int] = {}
    if case.attempts:
        async for entry in house.flint.history(handle.id):
            for step in entry.steps:
                if step.end_time:
                    key = step.step.rpartition("/")[2]
                    attempts[key] = attempts.get(key, 0) + 1
    if case.check is not None and (case.error is not None or run.state is RunState.SUCCEEDED):
        await case.check(house, world, run)
    return Outcome(run, attempts, took_s=took_s)


def _envelopes(case: Case, name: str) -> list[dict[str, Any]]:
    """The case's events, with what all events need."""
    return [
        {"source": "/tests", "id": f"{name}/{number}", **event, "type": event["type"].replace("<name>", name)}
        for number, event in enumerate(case.events, 1)
    ]


async def _until_waiting(house: House, run: str) -> None:
    async for change in house.flint.watch(run):
        found = getattr(change, "run", None)
        if found is not None and (found.state is RunState.WAITING or found.state.terminal):
            return


async def _approval(house: House, name: str) -> Approval:
    while True:
        async for found in house.flint.list_approvals(workflow=name):
            return found
        await asyncio.sleep(0.05)  # an approval is shown a moment after the run asked: nothing tells


def check(case: Case, outcome: Outcome) -> None:
    """The engine gave what the table says."""
    if outcome.broken is not None:
        raise AssertionError(f"{type(outcome.broken).__name__}: {outcome.broken}") from outcome.broken
    run = outcome.run
    assert run is not None
    if case.error is None:
        assert run.state is RunState.SUCCEEDED, run.error
        assert case.output == run.output
    else:
        assert run.error is not None, run.output
        problem = {name: getattr(run.error, name) for name in ("type", "status", "title", "detail", "instance")}
        assert dict(case.error) == {name: problem[name] for name in case.error}, problem
    assert {key: outcome.attempts.get(key, 0) for key in case.attempts} == dict(case.attempts)
    assert outcome.took_s >= case.least_s


def check_kit(case: Case, name: str) -> None:
    """The workflow test kit gives the same."""
    assert case.stubs is not None
    events = [
        Event(
            type=event["type"].replace("<name>", name),
            data=event.get("data"),
            source=event.get("source", "/tests"),
            id=event.get("id", f"{name}/{number}"),
            subject=event.get("subject", ""),
            after={"milliseconds": number},
            attributes={
                key: value
                for key, value in event.items()
                if key not in ("type", "data", "source", "id", "subject", "after")
            },
        )
        for number, event in enumerate(case.events, 1)
    ]
    children = {
        f"{name}-{key}": text_of(case, f"{name}-{key}", _NOWHERE, body.replace("<name>", name))
        for key, body in case.children.items()
    }
    result = simulate(
        text_of(case, name, _NOWHERE), case.input, stubs=case.stubs, events=events, workflows=children, secrets=SECRETS
    )
    if case.error is None:
        assert result.state == "succeeded", result.error or result.state
        assert case.output == result.output
    else:
        assert result.error is not None, result.state
        assert dict(case.error) == {key: result.error.get(key, "") for key in case.error}, result.error
    assert {key: result.attempts(key) for key in case.attempts} == dict(case.attempts)


async def check_refused(house: House, case: Refused, name: str) -> None:
    """Apply refuses it, with the place; the workflow test kit does too."""
    text = case.document or text_of(case, name, {})
    with pytest.raises(DefinitionInvalid) as raised:
        await house.flint.apply(text)
    found = [(finding.field, finding.description) for finding in raised.value.violations]
    pointers = [field for field, text in found if case.message in text]
    assert pointers, found
    with pytest.raises(DefinitionRefused) as again:
        simulate(text)
    match = [each for each in again.value.findings if case.message in each.message]
    assert [(each.rule, each.pointer) for each in match] == [(case.rule, case.pointer)], again.value.findings
    assert match[0].line > 0 and match[0].column > 0
