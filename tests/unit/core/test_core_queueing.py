"""What definitions say of queueing: how it is compiled, resolved for one run, stored; windows; moves of the machine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flint_core.definition import compile_definition
from flint_core.effects import Call, Move
from flint_core.events import CallSucceeded, Moved, decode_events, encode_events
from flint_core.machine import Machine, RunFacts, Succeeded
from flint_core.program import Program
from flint_core.queue_hints import NOTHING, HintInvalid, StartHints, resolve_hints
from flint_core.queueing import ConcurrencyKey, Placement, QueueHints, RateKey
from flint_core.windows import Window, WindowInvalid, parse_window

HEAD = "document: {{dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0, metadata: {{flint: {0}}}}}\n"
DO = "do: [{t: {call: noop}}]\n"
HOUR_MS = 3_600_000


def program(source: str) -> Program:
    compiled = compile_definition(source)
    assert compiled.program is not None, compiled.findings
    return Program.decode(compiled.program.encode())


def queue_of(hints: str) -> dict[str, Any]:
    queue = program(HEAD.format(hints) + DO).queue
    assert queue is not None
    return queue


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)


def test_hints_of_a_document_become_hints_of_a_run() -> None:
    queue = queue_of(
        "{pool: gpu, region: eu, level: gold, fairness: '${ .customer }', sticky: 'm-${ $input.model }', "
        "sla: {start: PT5M, finish: PT1H}, window: {from: '22:00', to: '06:00', zone: Europe/Berlin, days: [fri]}, "
        "offPeak: {latestStart: PT8H}}"
    )
    assert queue["level"] == "gold"
    hints = resolve_hints(queue, NOTHING, "demo", b'{"customer": 7, "model": "x"}', 1000)
    assert hints == QueueHints(
        pool="gpu",
        region="eu",
        deadline_ms=1000 + HOUR_MS,
        latest_start_ms=1000 + HOUR_MS // 12,
        off_peak=True,
        window=Window(22 * 60, 6 * 60, (4,), "Europe/Berlin"),
        fairness_key="7",
        sticky="m-x",
    )
    said = StartHints(pool="cpu", deadline_ms=5, fairness_key="mine")
    over = resolve_hints(queue, said, "demo", b"{}", 1000)
    assert over is not None
    assert (over.pool, over.region, over.deadline_ms, over.fairness_key) == ("cpu", "eu", 5, "mine")


def test_a_run_without_hints_has_none() -> None:
    assert program(HEAD.format("{level: 3}") + DO).queue is None
    assert resolve_hints(None, NOTHING, "demo", b"{}", 0) is None
    assert resolve_hints({}, StartHints(pool="default"), "demo", b"{}", 0) is None


def test_a_key_that_is_no_text_is_refused_and_one_that_is_missing_is_none() -> None:
    queue = queue_of("{fairness: '${ .customer }'}")
    assert resolve_hints(queue, NOTHING, "demo", b"{}", 0) is None
    with pytest.raises(HintInvalid, match="an object or a list"):
        resolve_hints(queue, NOTHING, "demo", b'{"customer": {}}', 0)
    with pytest.raises(HintInvalid, match="characters"):
        resolve_hints(queue, NOTHING, "demo", orjson.dumps({"customer": "x" * 200}), 0)


@pytest.mark.parametrize(
    ("hints", "pointer", "words"),
    [
        ("{pool: GPU}", "pool", "lower-case"),
        ("{region: 3}", "region", "lower-case"),
        ("{level: Gold}", "level", "the name of a level"),
        ("{fairness: '${ map(.x) }'}", "fairness", "needs jq"),
        ("{sticky: 3}", "sticky", "a key is text"),
        ("{window: {from: '22:00', to: '22:00'}}", "window", "open always"),
        ("{window: {from: '22:00'}}", "window", "needs 'to'"),
        ("{window: {from: '25:00', to: '06:00'}}", "window", "no time of the day"),
        ("{window: {cron: '0 22 * * *'}}", "window", "needs 'for'"),
        ("{window: {cron: 'x', for: PT1H}}", "window", "5 fields"),
        ("{window: {from: '22:00', to: '06:00', zone: Mars}}", "window", "no time zone"),
        ("{window: {from: '22:00', to: '06:00', days: [tuesday]}}", "window", "mon, tue"),
        ("{sla: {start: soon}}", "sla/start", ""),
        ("{sla: {}}", "sla", "needs 'start' or 'finish'"),
        ("{offPeak: 3}", "offPeak", ""),
    ],
)
def test_a_mistake_is_told_where_it_stands(hints: str, pointer: str, words: str) -> None:
    compiled = compile_definition(HEAD.format(hints) + DO)
    assert compiled.program is None
    (finding,) = [f for f in compiled.findings if f.severity == "error"]
    assert finding.pointer == f"/document/metadata/flint/{pointer}"
    assert words in finding.message


def test_a_place_is_for_what_is_executed() -> None:
    compiled = compile_definition(HEAD.format("{}") + "do: [{t: {set: {a: 1}, metadata: {flint: {pool: gpu}}}}]\n")
    assert compiled.program is None
    assert "not for set" in compiled.findings[0].message


@given(
    st.builds(
        QueueHints,
        pool=st.sampled_from(["default", "gpu"]),
        region=st.sampled_from(["", "eu"]),
        deadline_ms=st.integers(0, 1 << 50),
        off_peak=st.booleans(),
        window=st.sampled_from([None, parse_window("01:00-02:00"), Window(cron="0 1 * * *", open_ms=60_000)]),
        fairness_key=st.text(max_size=5),
        concurrency=st.sampled_from([(), (ConcurrencyKey("k", 3), ConcurrencyKey("l", 1, "refuse"))]),
        rates=st.sampled_from([(), (RateKey("r", 5, 1000, 2),)]),
        sticky=st.text(max_size=5),
    )
)
def test_hints_come_back_as_they_were_stored(hints: QueueHints) -> None:
    assert QueueHints.from_json(hints.to_json()) == hints


def test_only_what_is_set_is_stored_and_what_is_unknown_is_left_out() -> None:
    assert QueueHints().to_json() == b"{}"
    assert QueueHints(pool="gpu").to_json() == b'{"pool":"gpu"}'
    assert QueueHints.from_json(b'{"pool":"gpu","later":1}') == QueueHints(pool="gpu")
    assert Placement.from_json(Placement("gpu", "eu", 2, "gold").to_json()) == Placement("gpu", "eu", 2, "gold")


@pytest.mark.parametrize(
    ("window", "now", "opens", "closes"),
    [
        ("22:00-06:00", "2026-03-10T12:00:00Z", "2026-03-10T22:00:00Z", "2026-03-11T06:00:00Z"),
        ("22:00-06:00", "2026-03-10T23:00:00Z", "2026-03-10T22:00:00Z", "2026-03-11T06:00:00Z"),
        ("22:00-06:00", "2026-03-10T05:59:59Z", "2026-03-09T22:00:00Z", "2026-03-10T06:00:00Z"),
        ("22:00-06:00", "2026-03-10T06:00:00Z", "2026-03-10T22:00:00Z", "2026-03-11T06:00:00Z"),
        # The clock goes forward at 02:00 in Berlin: the night is an hour shorter.
        ("22:00-06:00 Europe/Berlin", "2026-03-29T00:00:00Z", "2026-03-28T21:00:00Z", "2026-03-29T04:00:00Z"),
    ],
)
def test_when_a_window_is_open(window: str, now: str, opens: str, closes: str) -> None:
    assert parse_window(window).opening(at(now)) == (at(opens), at(closes))


def test_windows_by_days_and_by_cron() -> None:
    weekend = Window(0, 12 * 60, (5, 6))
    assert weekend.opening(at("2026-03-11T12:00:00Z")) == (at("2026-03-14T00:00:00Z"), at("2026-03-14T12:00:00Z"))
    nightly = Window(cron="0 22 * * *", open_ms=2 * HOUR_MS)
    assert nightly.opening(at("2026-03-11T23:30:00Z")) == (at("2026-03-11T22:00:00Z"), at("2026-03-12T00:00:00Z"))
    assert nightly.opening(at("2026-03-12T00:00:00Z")) == (at("2026-03-12T22:00:00Z"), at("2026-03-13T00:00:00Z"))
    with pytest.raises(WindowInvalid):
        parse_window("22:00")


MOVING = """do:
- here: {call: noop}
- there:
    do: [{one: {call: noop}}, {two: {call: noop, metadata: {flint: {level: gold}}}}]
    metadata: {flint: {pool: gpu}}
- back: {call: noop}
"""


def machine_of(source: str) -> tuple[Program, RunFacts]:
    compiled = program(HEAD.format("{}") + source)
    return compiled, RunFacts("r", "default", "demo", "1.0.0", 0, 5, 1)


def test_a_step_that_names_a_pool_asks_to_move_and_the_next_one_moves_back() -> None:
    compiled, facts = machine_of(MOVING)
    machine = Machine.start(compiled, facts, {}, 0)
    recorded: list[CallSucceeded | Moved] = []
    asked: list[str] = []
    while machine.end is None:
        while machine.advance(100):
            pass
        for effect in machine.take_effects():
            event: CallSucceeded | Moved
            if isinstance(effect, Move):
                asked.append(f"{effect.pool}/{effect.level}")
                # Another worker goes on here: from the state alone, with the same effect outstanding.
                machine = Machine.restore(compiled, facts, machine.snapshot())
                assert [e for e in machine.pending() if isinstance(e, Move)] == [effect]
                event = Moved(effect.effect_id, 1)
            else:
                assert isinstance(effect, Call)
                asked.append(effect.name)
                event = CallSucceeded(effect.effect_id, {}, 1, 1)
            machine.apply(event)
            recorded.append(event)
    assert machine.end == Succeeded({})
    assert asked == ["here", "gpu/", "one", "gpu/gold", "two", "/", "back"]
    again = Machine.start(compiled, facts, {}, 0)
    for each in decode_events(encode_events(recorded)):
        again.apply(each)
    while again.advance(100):
        pass
    assert again.end == Succeeded({})
    assert again.take_effects() == []


def test_a_cancelled_step_takes_its_move_back() -> None:
    source = "do: [{t: {call: noop, timeout: {after: {milliseconds: 5}}, metadata: {flint: {pool: gpu}}}}]\n"
    compiled, facts = machine_of(source)
    machine = Machine.start(compiled, facts, {}, 0)
    while machine.advance(100):
        pass
    effects = machine.take_effects()
    assert {type(e).__name__ for e in effects} == {"Timer", "Move"}
    restored = Machine.restore(compiled, facts, machine.snapshot())
    assert {type(e).__name__ for e in restored.pending()} == {"Timer", "Move"}
