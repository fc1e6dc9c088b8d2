"""Wide forks: chunks and their layout, the join, and that a fork gives the same in chunks as in the leg."""

import orjson
import pytest

from flint_core.branches import (
    Outcome,
    Spread,
    branch_input,
    chunk_size,
    concatenated,
    divide,
    join,
    layout,
    request_of,
)
from flint_core.definition import compile_definition
from flint_core.effects import Await, AwaitKind, CancelEffect
from flint_core.events import Received, ResetBegun
from flint_core.machine import Machine, MachineLimits, SnapshotError, Succeeded
from flint_core.payloads import is_reference
from flint_core.problems import ProblemType
from flint_sdk.testing import Failure, simulate
from support.machines import FACTS, HEAD, program_of, start
from support.random_workflows import generate_batch
from support.random_world import expect

WIDE = Spread(above=1, least=1, chunks=3)
NARROW = MachineLimits()
SPREAD = MachineLimits(spread=WIDE)
LOOP = (
    "do: [{l: {metadata: {flint: {parallel: 4}}, for: {each: x, in: '.'},"
    " do: [{a: {call: noop, with: {output: '${ [$x, $index, $input] | tojson }'}}}, {b: {set: {v: '${ . }'}}}]}}]"
)


def both(body, data=None, stubs=None, *, calls=True):
    """What the leg and what the chunks make of it; the second is returned."""
    narrow = simulate(HEAD + body, data, stubs=stubs)
    wide = simulate(HEAD + body, data, stubs=stubs, limits=SPREAD)
    assert (wide.state, wide.output, wide.error) == (narrow.state, narrow.output, narrow.error)
    if calls:
        assert sorted(c.idempotency_key for c in wide.calls) == sorted(c.idempotency_key for c in narrow.calls)
    return wide


@pytest.mark.parametrize(("count", "size"), [(33, 10), (1_000, 16), (32_000, 500), (100_000, 500), (900_000, 900)])
def test_sizes_of_chunks(count, size):
    assert chunk_size(count, Spread(32)) == size


def test_large_items_make_small_chunks_and_segments_hold_whole_ones():
    items = ["x" * 1_000] * 2_000
    division, payloads = divide(items, Spread(32), 100_000)
    assert division["size"] == 32
    assert [length % 32 for _, length in division["segments"]][:-1] == [0] * (len(division["segments"]) - 1)
    assert sum(length for _, length in division["segments"]) == 2_000
    assert orjson.loads(concatenated([payload.data for payload in payloads])) == items


@pytest.mark.parametrize(("count", "size", "most"), [(1000, 16, 1000), (1000, 16, 50), (1000, 16, 1), (40, 10, 33)])
def test_no_more_at_once_than_asked_for(count, size, most):
    window, at_once = layout(count, size, most, Spread(32))
    assert window * at_once <= most
    assert window <= -(-count // size)


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(1_000, 1_000, (63, 15)), (100_000, 1_000, (66, 15)), (100_000, 100, (100, 1)), (100_000, 10_000, (200, 50))],
)
def test_branches_are_recorded_together_as_long_as_the_workers_are_occupied(count, most, expected):
    spread = Spread(32)
    assert layout(count, chunk_size(count, spread), most, spread) == expected


def test_arrays_are_joined_without_being_read():
    assert concatenated([b"[]", b"[1, 2]", b" [ ] ", b'[{"a":[]}]', b"[]"]) == b'[1, 2,{"a":[]}]'
    assert concatenated([]) == b"[]"


def request(count=5, size=2, **other):
    return request_of(
        {
            "count": count,
            "size": size,
            "window": 2,
            "at_once": 1,
            "compete": False,
            "entry": {},
            "segments": None,
            **other,
        }
    )


def test_each_chunk_gets_its_part_of_the_items():
    wanted = request(segments=[[[1, 2, 3, 4], 4], [{"$payload": {"sha256": "0" * 64, "bytes": 3}}, 1]])
    assert [branch_input(wanted, n).get("items") for n in range(2)] == [[1, 2], [3, 4]]
    last = branch_input(wanted, 2)
    assert (last["skip"], last["first"], last["count"]) == (0, 4, 1)


def test_what_decides_a_fork():
    outputs = [Outcome(n, "succeeded", 9 - n, {"outputs": [n]}) for n in range(3)]
    assert join(request(), outputs[:2]) is None
    assert join(request(), outputs) == {"state": "succeeded", "parts": [[0], [1], [2]]}
    failed = Outcome(1, "failed", 3, {"type": "t", "status": 1, "title": "x"})
    ended = Outcome(2, "succeeded", 4, {"end": 5})
    assert join(request(), [ended, failed]) == {"state": "failed", "error": failed.result}
    assert join(request(), [ended, failed._replace(order=5.0)]) == {"state": "ended", "output": 5}
    won = Outcome(0, "succeeded", 7, {"won": "w"})
    assert join(request(compete=True), [failed]) is None
    assert join(request(compete=True), [failed, won]) == {"state": "won", "output": "w"}
    lost = [failed._replace(number=n, order=n) for n in range(3)]
    assert join(request(compete=True), lost) == {"state": "failed", "error": failed.result}
    assert join(request(), [Outcome(0, "cancelled", 1, None)])["error"]["type"] == ProblemType.CANCELLED


@pytest.mark.parametrize("count", [2, 3, 10, 41])
def test_a_loop_gives_the_same_in_chunks(count):
    wide = both(LOOP, [f"item {n}" for n in range(count)])
    assert len(wide.output) == count
    assert {a.iteration for a in wide.attempts_made if a.name == "a"} == {str(n) for n in range(count)}


def test_a_fork_gives_the_same_in_chunks():
    branches = ", ".join(f"{{b{n}: {{call: noop, with: {{output: '${{ [., {n}] }}'}}}}}}" for n in range(7))
    wide = both(f"do: [{{s: {{set: {{n: 1}}}}}}, {{f: {{fork: {{branches: [{branches}]}}}}}}]")
    assert wide.output == [[{"n": 1}, n] for n in range(7)]
    both(f"do: [{{f: {{fork: {{compete: true, branches: [{branches}]}}}}}}]")


def test_what_branches_read_of_the_run():
    body = (
        "input: {from: '${ {k: .k} }'}\n"
        "do: [{before: {set: {n: 5}, export: {as: '${ {c: .n} }'}}}, {o: {for: {each: y, in: '[1, 2]'}, do: [{"
        "l: {metadata: {flint: {parallel: 9}}, for: {each: x, in: '[1, 2, 3]'}, do: [{s: {set: {all: "
        "'${ [$x, $y, $index, $context, $steps.before, $workflow.input, $workflow.id, $input, $task.name] }'}}}]}}]}}]"
    )
    wide = both(body, {"k": 1, "z": 2})
    assert wide.output[0]["all"][:5] == [1, 2, 0, {"c": 5}, {"n": 5}]
    assert both(body.replace(", export: {as: '${ {c: .n} }'}", ""), {"k": 1}).output[0]["all"][3] == {"k": 1}


def test_the_first_failure_fails_the_loop_and_can_be_caught():
    fails = lambda arguments: Failure(503, detail="down") if '"item 5"' in str(arguments) else 1  # noqa: E731
    items = [f"item {n}" for n in range(12)]
    both(LOOP, items, {"a": fails}, calls=False)
    caught = "do: [{t: {try: [" + LOOP[5:-1] + "], catch: {do: [{s: {set: {why: '${ $error }'}}}]}}}]"
    wide = both(caught, items, {"a": fails}, calls=False)
    assert wide.output["why"]["instance"].endswith("/l/do/0/a")


@pytest.mark.parametrize("then", ["exit", "end"])
def test_exit_leaves_an_iteration_and_end_the_run(then):
    both(
        "do: [{l: {metadata: {flint: {parallel: 2}}, for: {in: '[1, 2, 3, 4]'},"
        f" do: [{{a: {{set: {{x: '${{ $item }}'}}, then: {then}}}}}, {{b: {{set: {{x: 0}}}}}}]}}}},"
        " {z: {set: {y: '${ . }'}}}]"
    )


def test_loops_within_loops_spread_again():
    wide = both(
        "do: [{o: {metadata: {flint: {parallel: 5}}, for: {each: x, in: '[range(4)]'}, do: [{i: {metadata: {flint: "
        "{parallel: 5}}, for: {each: y, in: '[range(5)]'}, do: [{a: {call: noop, with: {output: '${ $x * 10 + $y }'}}}]"
        "}}]}}]"
    )
    assert wide.output == [[x * 10 + y for y in range(5)] for x in range(4)]


def test_a_collection_and_outputs_by_reference():
    limits = MachineLimits(payload_bytes=4_000, state_bytes=40_000, spread=Spread(32))
    body = (
        "do: [{l: {metadata: {flint: {parallel: 8}}, for: {in: '[range(5000)]'}, do: [{a: {set: '${ $item + 1 }'}}]}}]"
    )
    result = simulate(
        HEAD + body.replace("set: '${ $item + 1 }'", "call: noop, with: {output: '${ $item + 1 }'}"), limits=limits
    )
    assert result.output == list(range(1, 5_001))
    text = "do: [{l: {metadata: {flint: {parallel: 8}}, for: {in: '\"x\" * 9000'}, do: [{a: {set: {x: 1}}}]}}]"
    assert simulate(HEAD + text, limits=limits).error["type"] == ProblemType.EXPRESSION


@pytest.mark.parametrize(
    "inside",
    [
        "{a: {set: {n: 1}, export: {as: '${ . }'}}}",
        "{a: {listen: {to: {one: {with: {type: x}}}}}}",
        "{a: {call: approval, with: {title: t}}}",
        "{a: {call: noop, metadata: {flint: {compensate: {call: noop}}}}}",
    ],
)
def test_what_concerns_the_whole_run_stays_in_the_leg(inside):
    body = f"do: [{{l: {{metadata: {{flint: {{parallel: 4}}}}, for: {{in: '[1, 2, 3]'}}, do: [{inside}]}}}}]"
    driver = start(body, limits=SPREAD)
    driver.settle()
    assert not [e for e in driver.effects if isinstance(e, Await) and e.kind is AwaitKind.BRANCHES]


def test_the_await_is_one_and_is_taken_back():
    driver = start(LOOP, list(range(100)), limits=MachineLimits(spread=Spread(32)))
    driver.settle()
    (wait,) = driver.awaits
    assert wait.kind is AwaitKind.BRANCHES
    assert request_of(wait.request).chunks == 10
    snapshot = driver.machine.snapshot()
    machine = Machine.restore(program_of(LOOP), FACTS, snapshot, SPREAD)
    assert machine.snapshot() == snapshot
    assert machine.pending() == [wait]
    driver.cancel()
    driver.settle()
    assert CancelEffect(wait.effect_id) in driver.effects


@pytest.mark.parametrize("length", [10, 9_000])
def test_a_reset_asks_for_branches_with_keys_of_their_own(length):
    """The entry that chunks begin from names the generation, inline or in the payload store."""
    body = LOOP.replace("$input]", "($workflow.input | length)]")
    driver = start(body, ["x" * length, *range(50)], limits=MachineLimits(spread=Spread(32)))
    driver.settle()
    (before,) = driver.awaits
    driver.machine.take_payloads()
    driver.machine.apply(ResetBegun(3, FACTS.created_ms + 60_000))
    while driver.machine.advance(100):
        pass
    (after,) = (e for e in driver.machine.pending() if isinstance(e, Await))
    entry = after.request["entry"]
    if is_reference(entry):
        (payload,) = driver.machine.take_payloads()
        entry = orjson.loads(payload.data)
    assert (entry["facts"][3], after.effect_id >> 32) == (3, 3)
    asked, again = request_of(before.request), request_of(after.request)
    assert (again.chunks, again.segments) == (asked.chunks, asked.segments)


def test_a_branch_run_survives_a_restore_at_each_turn():
    """Also what it knows of the run: facts, deadline, variables."""
    body = (
        "timeout: {after: PT1H}\n"
        "do: [{o: {for: {each: y, in: '[8]'}, do: [" + LOOP[5:-1].replace("$input]", "$y, $workflow.id]") + "]}}]"
    )
    driver = start(body, ["p", "q", "r", "s"], limits=SPREAD)
    driver.settle()
    wanted = request_of(driver.awaits[0].request)
    program = program_of(body)
    calls = []
    for number in range(wanted.chunks):
        machine = Machine.start_branch(
            program, FACTS._replace(run_id="own"), branch_input(wanted, number), 5_000, SPREAD
        )
        inner = start(body)  # for its clock and answers
        inner.machine, inner.now = machine, 5_000
        while inner.machine.end is None:
            inner.settle()
            if inner.machine.end is None:
                snapshot = inner.machine.snapshot()
                inner.machine = Machine.restore(program, FACTS._replace(run_id="own"), snapshot, SPREAD)
                assert inner.machine.snapshot() == snapshot
                inner.machine.pending()
                inner.next()
        calls += inner.calls
        assert isinstance(inner.machine.end, Succeeded)
        assert "l:succeeded" not in inner.shown()
    assert sorted(call.idempotency_key for call in calls) == [f"run-1/0/do/0/o/do/0/l/do/0/a/0.{n}" for n in range(4)]
    assert {call.deadline_ms for call in calls} == {1_000 + 3_600_000}


def test_what_does_not_fit_the_program_is_refused():
    program = compile_definition(HEAD + LOOP).program
    with pytest.raises(SnapshotError):
        Machine.start_branch(program, FACTS, {"entry": {"task": 99}}, 1)


def test_a_refusal_fails_the_fork():
    driver = start(LOOP, [1, 2, 3], limits=SPREAD)
    driver.settle()
    wait = driver.awaits[0]
    problem = {"type": str(ProblemType.LIMIT_EXCEEDED), "status": 429, "title": "full"}
    driver.feed(Received(wait.effect_id, "refused/1", {"state": "refused", "error": problem}, 2_000))
    driver.settle()
    assert driver.problem.status == 429


def test_steps_mean_the_same_in_chunks():
    """Also in the second round, and of a loop within a branch, whose entry has what the branch gave itself."""
    inner = (
        "{i: {metadata: {flint: {parallel: 4}}, for: {each: y, in: '[7, 8]'}, do: [{c: {set: '${ [$steps.a, $y] }'}}]}}"
    )
    body = (
        "do: [{o: {for: {in: '[1, 2]'}, do: [{l: {metadata: {flint: {parallel: 4}}, for: {each: x, in: '[1, 2, 3, 4]'},"
        f" do: [{{s: {{set: '${{ $steps.a }}'}}}}, {{a: {{call: noop, with: {{output: '${{ $x }}'}}}}}}, {inner},"
        " {b: {set: '${ [., $steps.s] }'}}]}}]}}]"
    )
    assert both(body).output == [[[[x, 7], [x, 8]], None] for x in (1, 2, 3, 4)]


@pytest.mark.parametrize("seed", [3, 41, 60_633])
def test_random_workflows_give_the_same_in_chunks(seed, monkeypatch):
    batch = {w.name: w for w in generate_batch(seed, 60)}
    given = {"url": "http://x", "key": "k1", "n": 3}
    narrow = {name: expect(w, batch, given) for name, w in batch.items()}
    spread = 0

    def widely(*arguments, **named):
        return simulate(*arguments, **named, limits=SPREAD)

    monkeypatch.setattr("support.random_world.simulate", widely)
    for name, workflow in batch.items():
        outcome, result = expect(workflow, batch, given)
        assert outcome == narrow[name][0], name
        mine = sorted((c.step, c.iteration, c.attempt) for c in result.calls)
        assert {c[:2] for c in mine} == {(c.step, c.iteration) for c in narrow[name][1].calls}, name
        spread += any(a.state == "waiting" and a.kind in ("for", "fork") for a in result.attempts_made)
    assert spread >= 5
