"""A reset: replay up to a point, then a generation of its own; whatever was open there is open under a new name."""

from __future__ import annotations

from typing import Any

import orjson

from flint_core.definition import compile_definition
from flint_core.effects import Await, Call, Effect, Timer
from flint_core.events import CallSucceeded, Event, Received, ResetBegun, decode_events, encode_events
from flint_core.machine import Machine, RunFacts, Succeeded

FACTS = RunFacts("run-1", "default", "demo", "1.0.0", 1_000, 5, 0, 11)


def program(body: str) -> Any:
    head = "document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}\n"
    compiled = compile_definition(head + body)
    assert compiled.program is not None, compiled.findings
    return compiled.program


def rebuilt(made: Any, events: list[Event]) -> Machine:
    machine = Machine.start(made, FACTS, {}, 1_000)
    for event in decode_events(encode_events(events)):
        machine.apply(event)
    while machine.advance(100):
        pass
    return machine


def settled(machine: Machine) -> list[Effect]:
    while machine.advance(100):
        pass
    return machine.take_effects()


BRANCHES = """
do:
  - both:
      fork:
        branches:
          - left: { call: http, with: { method: get, endpoint: 'http://x/left' } }
          - right:
              do:
                - nap: { wait: { seconds: 10 } }
                - ask: { listen: { to: { one: { with: { type: t } } } } }
  - last: { run: { workflow: { namespace: default, name: other, version: 1.0.0 } } }
"""


def test_what_is_open_gets_new_names_and_its_time_back() -> None:
    made = program(BRANCHES)
    machine = rebuilt(made, [])
    before = {type(e): e for e in machine.take_effects()}
    machine.apply(ResetBegun(2, 61_000))
    effects = settled(machine)
    after = {type(e): e for e in effects if type(e) in (Call, Timer)}
    call, timer = after[Call], after[Timer]
    assert isinstance(call, Call) and isinstance(timer, Timer)
    assert call.effect_id >> 32 == timer.effect_id >> 32 == 2
    old_call, old_timer = before[Call], before[Timer]
    assert isinstance(old_call, Call) and isinstance(old_timer, Timer)
    assert old_call.idempotency_key == "run-1/0/do/0/both/fork/branches/0/left/0"
    assert call.idempotency_key == old_call.idempotency_key.replace("run-1/0/", "run-1/2/")
    assert timer.until_ms == old_timer.until_ms + 60_000
    machine.apply(CallSucceeded(old_call.effect_id, {"late": True}, 0, 61_001))
    assert settled(machine) == [], "an answer to the generation before is nobody's"


def test_a_state_is_rebuilt_across_resets_and_goes_on() -> None:
    made = program(BRANCHES)
    machine = rebuilt(made, [])
    left = next(e for e in machine.take_effects() if isinstance(e, Call))
    events: list[Event] = [CallSucceeded(left.effect_id, {"v": 1}, 0, 1_500), ResetBegun(1, 5_000)]
    machine = rebuilt(made, events)
    restored = Machine.restore(made, FACTS, machine.snapshot())
    for each in (machine, restored):
        timer = next(e for e in each.pending() if isinstance(e, Timer))
        assert timer.effect_id >> 32 == 1
    assert orjson.loads(machine.snapshot())["reset"] == 1
    again = rebuilt(made, [*events, ResetBegun(2, 9_000)])
    timer = next(e for e in again.pending() if isinstance(e, Timer))
    assert timer.effect_id >> 32 == 2 and not any(isinstance(e, Call) for e in again.pending())


def test_a_child_is_another_run_of_the_new_generation() -> None:
    made = program("do:\n  - last: { run: { workflow: { namespace: default, name: other, version: 1.0.0 } } }\n")
    machine = rebuilt(made, [])
    old = next(e for e in machine.take_effects() if isinstance(e, Await))
    machine.apply(ResetBegun(1, 2_000))
    new = next(e for e in settled(machine) if isinstance(e, Await))
    assert old.request["key"].startswith("run-1/0/") and new.request["key"].startswith("run-1/1/")
    machine.apply(Received(new.effect_id, "run/x", {"state": "succeeded", "run": "r", "output": 3}, 3_000))
    settled(machine)
    assert isinstance(machine.end, Succeeded) and machine.end.output == 3


def test_signals_that_are_taken_are_told_and_those_passed_over_are_not() -> None:
    made = program("do:\n  - ask: { listen: { to: { one: { with: { type: s.go } } } } }\n")
    machine = rebuilt(made, [])
    ask = next(e for e in machine.take_effects() if isinstance(e, Await))
    machine.apply(Received(ask.effect_id, "signal/1/1", {"type": "s.no", "id": "1", "source": "s"}, 2_000))
    settled(machine)
    assert machine.take_signals() == []
    machine.apply(Received(ask.effect_id, "signal/2/1", {"type": "s.go", "id": "2", "source": "s"}, 2_000))
    machine.apply(Received(ask.effect_id, "signal/3/1", {"type": "s.go", "id": "3", "source": "s"}, 2_000))
    settled(machine)
    assert machine.take_signals() == ["signal/2/1"] and machine.take_signals() == []
