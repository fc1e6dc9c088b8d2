"""Snapshots, pending effects, late and wrong answers, limits, the events' encoding."""

import gc
import weakref

import orjson
import pytest

from flint_core.effects import Call, CancelEffect, Evaluate, Timer
from flint_core.events import (
    CallFailed,
    CallSucceeded,
    CancelRequested,
    Evaluated,
    EvaluateFailed,
    TimerFired,
    decode_events,
    encode_events,
)
from flint_core.machine import Cancelled, Machine, MachineLimits, RunFacts, SnapshotError, StateTooLarge, Succeeded
from flint_core.problems import Problem
from support.machines import start

FACTS = RunFacts("run-1", "default", "demo", "1.0.0", 1_000, 5, 0, 7)
PROBLEM = Problem("https://e.x/no", 418, "No", "d", "/do/0/a")


def settled(machine):
    while machine.advance(100):
        pass
    return machine


def test_events_survive_their_encoding_but_for_evaluated():
    events = [
        CallSucceeded(1, {"a": [1, None]}, 5, 6),
        CallFailed(2, PROBLEM, 5, 6, 700),
        TimerFired(3, 9),
        EvaluateFailed(4, PROBLEM, 9),
        CancelRequested(10),
    ]
    assert decode_events(encode_events([*events[:2], Evaluated(9, 1), *events[2:]])) == events
    assert decode_events(b"") == []


@pytest.mark.parametrize("data", [b"{}", b"[1]", b'[["z",1]]', b'[["s",1]]', b"nonsense"])
def test_bytes_that_are_no_events(data):
    with pytest.raises(ValueError):
        decode_events(data)


def test_all_recorded_events_may_be_applied_at_once(program_of):
    program = program_of(
        "do:\n"
        "  - a: {call: noop, with: {output: 1}}\n"
        "  - s: {set: {n: '${ [limit(1; .)] | .[0] }'}}\n"
        "  - b: {call: noop, with: {output: '${ .n }'}}\n"
        "  - w: {wait: PT1M}\n"
        "  - c: {call: noop}\n"
    )
    machine = Machine.start(program, FACTS, {}, 1_000)
    for event in (CallSucceeded(1, 4, 1_000, 1_001), CallSucceeded(3, 5, 1_001, 1_002), TimerFired(4, 61_002)):
        machine.apply(event)
    settled(machine)
    (question,) = machine.take_effects()  # the first call is answered already: only the expression is asked for
    assert (question.effect_id, question.input) == (2, 4)
    assert machine.pending() == [question]
    machine.apply(Evaluated(2, 4))
    settled(machine)
    (call,) = machine.take_effects()
    assert (call.name, call.effect_id, machine.now_ms) == ("c", 5, 61_002)
    assert [f"{record.step[-1]}:{record.state}" for record in machine.take_records()] == [
        *("a:succeeded", "s:succeeded", "b:succeeded", "w:waiting", "w:succeeded"),
    ]


def test_a_restored_machine_hands_out_what_it_waits_for_once(program_of):
    program = program_of(
        "use: {secrets: [k]}\n"
        "do: [{f: {fork: {branches: [{w: {wait: PT1M}}, {a: {call: http, timeout: {after: PT1H},"
        " with: {method: get, endpoint: 'http://x', body: {t: 'x ${ $secrets.k } ${ .n }'}}}}]}}}]"
    )
    machine = settled(Machine.start(program, FACTS, {"n": 1}, 1_000))
    effects = machine.take_effects()
    assert {type(effect) for effect in effects} == {Call, Timer}
    again = Machine.restore(program, FACTS, machine.snapshot())
    assert again.pending() == sorted(effects, key=lambda effect: effect.effect_id)
    assert settled(again).take_effects() == []
    once = Machine.restore(program, FACTS, machine.snapshot())
    assert sorted(settled(once).take_effects(), key=lambda effect: effect.effect_id) == again.pending()


def test_late_double_and_wrong_answers_are_ignored(program_of):
    program = program_of("do: [{a: {call: noop}}, {b: {call: noop}}]")
    machine = settled(Machine.start(program, FACTS, {}, 1_000))
    for event in (TimerFired(1, 9_000), CallSucceeded(99, 1, 9_000, 9_000), Evaluated(1, 1)):
        machine.apply(event)
    settled(machine)
    assert (machine.now_ms, machine.end) == (1_000, None)
    machine.apply(CallSucceeded(1, "first", 1_000, 1_001))
    machine.apply(CallSucceeded(1, "second", 1_000, 1_002))
    settled(machine)
    machine.apply(CallSucceeded(2, "done", 1_001, 1_003))
    assert settled(machine).end == Succeeded("done")
    machine.apply(CancelRequested(2_000))
    assert settled(machine).end == Succeeded("done")


def test_an_answer_after_the_deadline_changes_nothing(program_of):
    program = program_of(
        "do: [{t: {try: [{a: {call: noop, timeout: {after: PT1S}}}], catch: {do: [{w: {wait: PT1M}}]}}}]"
    )
    machine = settled(Machine.start(program, FACTS, {}, 1_000))
    timer, call = machine.take_effects()
    machine.apply(TimerFired(timer.effect_id, 2_000))
    machine.apply(CallSucceeded(call.effect_id, "late", 1_000, 2_001))
    settled(machine)
    effects = machine.take_effects()
    assert CancelEffect(call.effect_id) in effects
    assert (machine.now_ms, machine.end) == (2_000, None)


def test_time_never_goes_back(program_of):
    machine = settled(Machine.start(program_of("do: [{a: {call: noop}}, {w: {wait: PT1S}}]"), FACTS, {}, 5_000))
    machine.apply(CallSucceeded(1, {}, 3_000, 3_001))
    settled(machine)
    assert machine.take_effects()[-1].until_ms == 6_000


def test_a_state_beyond_its_limit_is_refused_and_unharmed(program_of):
    program = program_of("do: [{a: {call: noop, with: {output: '${ . }'}}}]")
    limits = MachineLimits(payload_bytes=600, state_bytes=400)
    machine = settled(Machine.start(program, FACTS, {"in": "x" * 500}, 1_000, limits))
    machine.apply(CancelRequested(1_500))
    for _ in range(50):  # answers that wait to be taken up are part of the state too
        machine.apply(CallSucceeded(1, "z" * 500, 1_000, 1_001))
    with pytest.raises(StateTooLarge) as caught:
        machine.snapshot()
    assert caught.value.size > caught.value.limit == 400 + 4 * 600
    assert settled(machine).end == Cancelled()


@pytest.mark.parametrize("branch", [False, True])
def test_values_that_tasks_share_are_written_once(program_of, branch):
    inner = "do: [{b: {do: [{c: {do: [{w: {wait: PT1M}}]}}]}}]"
    body = f"fork: {{branches: [{{x: {{{inner}}}}}, {{y: {{{inner}}}}}]}}" if branch else inner
    program = program_of(f"do: [{{a: {{{body}}}}}, {{z: {{set: {{n: '${{ . }}'}}}}}}]")
    data = {"s": "x" * 1_000}
    machine = settled(Machine.start(program, FACTS, data, 1_000))
    assert machine.snapshot().count(b"xxx" * 100) == 3  # one value of 1000 characters
    again = Machine.restore(program, FACTS, machine.snapshot())
    assert again.snapshot() == machine.snapshot()
    for timer in again.pending():
        again.apply(TimerFired(timer.effect_id, 99_000))
    assert settled(again).end == Succeeded({"n": [data, data] if branch else data})


def test_advance_works_in_slices(program_of):
    machine = Machine.start(program_of("do: [{a: {set: {x: 1}}}, {b: {set: {x: 2}}}]"), FACTS, {}, 1_000)
    slices = 0
    while machine.advance(1):
        slices += 1
    assert slices > 4
    assert machine.end == Succeeded({"x": 2})


def test_only_outputs_that_something_reads_are_kept(program_of):
    program = program_of(
        "do: [{a: {set: {v: 1}}}, {b: {set: {v: 2}}}, {w: {wait: PT1M}}, {c: {set: {x: '${ $steps.a.v }'}}}]"
    )
    machine = settled(Machine.start(program, FACTS, {}, 1_000))
    assert orjson.loads(machine.snapshot())["outputs"] == [[1, {"v": 1}]]


def test_the_end_is_part_of_the_state(program_of):
    program = program_of("do: [{a: {raise: {error: {type: 'https://e.x/no', status: 418, title: T}}}}]")
    machine = settled(Machine.start(program, FACTS, {}, 1_000))
    assert Machine.restore(program, FACTS, machine.snapshot()).end == machine.end


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format":2}', b"[]", b'{"format":1,"now":1}'])
def test_bytes_that_are_no_snapshot(program_of, data):
    with pytest.raises(SnapshotError):
        Machine.restore(program_of("do: [{a: {call: noop}}]"), FACTS, data)


def test_values_are_never_changed_in_place(program_of):
    program = program_of("do: [{l: {for: {in: .l}, do: [{a: {set: {k: '${ . }', n: '${ $item }'}}}]}}]")
    data = {"l": [[1], [2]]}
    settled(Machine.start(program, FACTS, data, 1_000))
    assert data == {"l": [[1], [2]]}
    assert Machine.start(program, FACTS, data, 1_000).take_effects() == []


def test_an_open_question_survives_a_snapshot_with_its_number(program_of):
    program = program_of(
        "do: [{a: {set: {n: '${ [limit(1; .)] | .[0] }', m: '${ [limit(1; now)] }'}}}, {b: {call: noop}}]"
    )
    machine = settled(Machine.start(program, FACTS, 7, 1_000))
    (first,) = machine.take_effects()
    again = Machine.restore(program, FACTS, machine.snapshot())
    assert again.pending() == [first]
    again.apply(Evaluated(first.effect_id, 7))
    (second,) = settled(again).take_effects()
    third = Machine.restore(program, FACTS, again.snapshot())
    assert third.pending() == [second]
    third.apply(Evaluated(second.effect_id, [1]))
    (call,) = settled(third).take_effects()
    assert [first.effect_id, second.effect_id, call.effect_id] == [1, 2, 3]


def test_attempts_go_on_counting_after_a_restore(program_of):
    retry = "catch: {retry: {delay: PT0S, limit: {attempt: {count: 2}}}}"
    inner = f"i: {{try: [{{a: {{call: noop}}}}], {retry}}}"
    program = program_of(f"do: [{{o: {{try: [{{{inner}}}, {{b: {{call: noop}}}}], {retry}}}}}]")
    machine = settled(Machine.start(program, FACTS, {}, 1_000))
    attempts = []
    for failed in (True, False, True, True, False):
        (call,) = machine.take_effects()
        attempts.append(call.attempt)
        machine = Machine.restore(program, FACTS, machine.snapshot())
        if failed:
            machine.apply(CallFailed(call.effect_id, PROBLEM, 1_000, 1_001))
        else:
            machine.apply(CallSucceeded(call.effect_id, {}, 1_000, 1_001))
        settled(machine)
    assert attempts == [1, 2, 1, 3, 4]


class _Marked(dict):
    """An input that can be asked for when everybody should have let go of it."""


def test_nothing_keeps_a_run_that_waited_for_expressions():
    data = _Marked(n=2)
    known = weakref.ref(data)
    driver = start("do: [{a: {set: {n: '${ [limit(2; .n, 1)] | add }'}}}]", data).run()
    assert driver.output == {"n": 3}
    assert any(isinstance(effect, Evaluate) for effect in driver.effects)
    del driver, data
    gc.collect()
    assert known() is None
