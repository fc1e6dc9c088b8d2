"""The guarded pool against real jq processes: what it yields, and what a hostile expression can not do."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from flint_jq import EvaluationFailed, EvaluatorPool, EvaluatorsBusy
from support.eventually import eventually

EVALUATE_MS = 700


@pytest.fixture
async def pool() -> AsyncIterator[EvaluatorPool]:
    pool = EvaluatorPool(2, EVALUATE_MS, 128 * 2**20, 200_000)
    await pool.start()
    yield pool
    await pool.close()


async def test_values_are_exact(pool: EvaluatorPool) -> None:
    big = {"max": 2**63 - 1, "min": -(2**63), "unsigned": 2**64 - 1, "odd": 2**53 + 1}
    assert await pool.evaluate(".", big, {}, 0) == big
    assert await pool.evaluate("map_values(.)", big, {}, 0) == big
    assert await pool.evaluate("[.[] | . + 1] | add", [1, 2], {}, 0) == 5
    assert await pool.evaluate("$a + $b.c", None, {"a": "x", "b": {"c": "ü\0𐀀"}}, 0) == "xü\0𐀀"
    assert await pool.evaluate("now", None, {}, 1_700_000_000_250) == 1_700_000_000.25
    assert await pool.evaluate("now | todate", None, {}, 1_700_000_000_000) == "2023-11-14T22:13:20Z"


async def test_one_result_at_most(pool: EvaluatorPool) -> None:
    assert await pool.evaluate("empty", 1, {}, 0) is None
    assert await pool.evaluate(".[]", [7], {}, 0) == 7
    with pytest.raises(EvaluationFailed, match="more than one") as failed:
        await pool.evaluate(".[]", [7, 8], {}, 0)
    assert failed.value.kind == "runtime"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (".a +", "syntax"),
        ("$nobody", "syntax"),
        ("nosuchfunction", "syntax"),
        ('import "a" as a; .', "syntax"),
        ('include "a"; .', "syntax"),
        ("$__prog_args", "syntax"),
        ("1 \0 2", "syntax"),
        ('error("own words")', "runtime"),
        ("1 + {}", "runtime"),
        ("env", "runtime"),
        ("input", "runtime"),
        ("[inputs]", "runtime"),
        ("halt", "runtime"),
        ('"x" | halt_error', "runtime"),
        ('"x" | halt_error(1)', "runtime"),
        ("get_search_list", "runtime"),
        ('"a" | modulemeta', "runtime"),
        ('"x" * 300000', "output"),
    ],
)
async def test_faults_have_a_kind(pool: EvaluatorPool, source: str, kind: str) -> None:
    pids = {process.pid for process in pool._processes.values()}
    with pytest.raises(EvaluationFailed) as failed:
        await pool.evaluate(source, None, {}, 0)
    assert failed.value.kind == kind
    assert {process.pid for process in pool._processes.values()} == pids  # nothing had to be killed


async def test_words_of_an_error_reach_the_caller(pool: EvaluatorPool) -> None:
    with pytest.raises(EvaluationFailed) as failed:
        await pool.evaluate('error("own words")', None, {}, 0)
    assert failed.value.detail == "own words"


async def test_the_environment_is_empty(pool: EvaluatorPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLINT_TEST_SECRET", "hunter2")
    assert await pool.evaluate("$ENV", None, {}, 0) == {}
    assert await pool.evaluate("$ENV.FLINT_TEST_SECRET", None, {}, 0) is None
    for process in pool._processes.values():
        environment = psutil.Process(process.pid).environ()
        assert not {"HOME", "PATH", "FLINT_TEST_SECRET"} & environment.keys()


async def test_logging_builtins_are_silent(pool: EvaluatorPool) -> None:
    assert await pool.evaluate('debug | debug("x") | stderr | input_filename', 5, {}, 0) is None
    assert await pool.evaluate("debug | stderr", 5, {}, 0) == 5


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ("last(repeat(1))", {"timeout"}),
        ("def f: f; f", {"timeout"}),
        ("[range(0; 1e12)]", {"timeout", "memory"}),
        ("def f: [., .] | f; f", {"timeout", "memory"}),
        ('reduce range(0; 40) as $i ("x" * 1000; . + .)', {"memory", "timeout"}),
        ('"a" * 40 + "b" | test("^(a+)+$")', {"timeout", "runtime"}),
        ("def f: 1 + f; f", {"timeout", "memory"}),
    ],
)
async def test_hostile_expressions_only_hurt_themselves(pool: EvaluatorPool, source: str, kinds: set[str]) -> None:
    begun = time.monotonic()
    hostile = asyncio.create_task(pool.evaluate(source, None, {}, 0))
    others = [asyncio.create_task(pool.evaluate("[.[] | . * 2]", [number], {}, 0)) for number in range(20)]
    with pytest.raises(EvaluationFailed) as failed:
        await hostile
    assert failed.value.kind in kinds
    assert time.monotonic() - begun < 10 * EVALUATE_MS / 1000 + 30, "what it may take by the clock"
    assert await asyncio.gather(*others) == [[number * 2] for number in range(20)]
    assert await pool.evaluate(".+1", 1, {}, 0) == 2


async def test_what_counts_is_processor_time() -> None:
    """One that stands still is not at fault; one that is given up by the clock has had far more than its time."""
    pool = EvaluatorPool(1, 200, 128 * 2**20, 100_000)
    await pool.start()
    try:
        (process,) = pool._processes.values()
        honest = asyncio.create_task(pool.evaluate("map(. + 1)", [1], {}, 0))
        psutil.Process(process.pid).suspend()
        done, _ = await asyncio.wait({honest}, timeout=1.0)
        assert not done
        psutil.Process(process.pid).resume()
        assert await honest == [2]
        assert pool.replaced == 0
        times = psutil.Process(process.pid).cpu_times()
        before = times.user + times.system
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        with pytest.raises(EvaluationFailed, match="200 ms of processor time") as failed:
            await pool.evaluate("last(repeat(1))", None, {}, 0)
        assert failed.value.kind == "timeout"
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = now.ru_utime + now.ru_stime - ended.ru_utime - ended.ru_stime - before
        assert 0.1 < spent < 2
    finally:
        await pool.close()


async def test_what_stands_still_is_given_up_by_the_clock() -> None:
    pool = EvaluatorPool(1, 1_000, 128 * 2**20, 100_000, patience=1)
    await pool.start()
    try:
        (process,) = pool._processes.values()
        asked = asyncio.create_task(pool.evaluate("map(. + 1)", [1], {}, 0))
        psutil.Process(process.pid).suspend()
        with pytest.raises(EvaluationFailed, match="did not end within 5 s") as failed:
            await asked
        assert failed.value.kind == "timeout"
        assert await pool.evaluate("map(. + 1)", [1], {}, 0) == [2]
    finally:
        await pool.close()


async def test_all_lanes_hostile_and_the_queue_still_moves(pool: EvaluatorPool) -> None:
    hostile = [asyncio.create_task(pool.evaluate("last(repeat(1))", None, {}, 0)) for _ in range(4)]
    patient = asyncio.create_task(pool.evaluate("map(.)", [3], {}, 0))
    outcomes = await asyncio.gather(*hostile, return_exceptions=True)
    assert [outcome.kind for outcome in outcomes if isinstance(outcome, EvaluationFailed)] == ["timeout"] * 4
    assert await patient == [3]
    assert pool.replaced == 4


def _spent_s(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


async def test_a_killed_process_is_replaced_and_the_question_put_again(pool: EvaluatorPool) -> None:
    for pid in pool.pids:
        psutil.Process(pid).kill()
    assert [await pool.evaluate("map(.)", [number], {}, 0) for number in range(3)] == [[0], [1], [2]]
    busy = [psutil.Process(pid) for pid in pool.pids]
    for process in busy:
        process.suspend()
    asked = asyncio.create_task(pool.evaluate("map(. + 1)", [1], {}, 0))
    done, _ = await asyncio.wait({asked}, timeout=0.2)
    assert not done
    for process in busy:
        process.kill()
    assert await asked == [2]


async def test_a_question_that_loses_one_process_after_the_other_is_at_fault() -> None:
    pool = EvaluatorPool(1, 60_000, 128 * 2**20, 100_000)
    await pool.start()
    try:
        asked = asyncio.create_task(pool.evaluate("last(repeat(1))", None, {}, 0))
        for killed in range(2):
            await eventually(lambda lost=killed: pool.replaced == lost and sum(map(_spent_s, pool.pids)) > 0.5)  # type: ignore[misc]
            psutil.Process(pool.pids[0]).kill()
        with pytest.raises(EvaluationFailed) as failed:
            await asked
        assert failed.value.kind == "memory"
        assert await pool.evaluate("map(.)", [1], {}, 0) == [1]
        assert pool.replaced == 2
    finally:
        await pool.close()


async def test_the_queue_is_bounded() -> None:
    pool = EvaluatorPool(1, EVALUATE_MS, 128 * 2**20, 100_000, waiting=2)
    await pool.start()
    tasks = [asyncio.create_task(pool.evaluate("map(.)", [number], {}, 0)) for number in range(5)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(outcome, EvaluatorsBusy) for outcome in outcomes)
    assert next(outcome for outcome in outcomes if not isinstance(outcome, EvaluatorsBusy)) == [0]
    await pool.close()
    with pytest.raises(EvaluatorsBusy):
        await pool.evaluate("map(.)", [1], {}, 0)


async def test_close_ends_processes_and_waiting_callers() -> None:
    pool = EvaluatorPool(1, 60_000, 128 * 2**20, 100_000)
    await pool.start()
    pids = [process.pid for process in pool._processes.values()]
    waiting = [asyncio.create_task(pool.evaluate("last(repeat(1))", None, {}, 0)) for _ in range(2)]
    await asyncio.sleep(0)
    await pool.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, EvaluatorsBusy) for outcome in outcomes)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def _limits(pid: int) -> dict[str, list[str]]:
    limits = Path(f"/proc/{pid}/limits")
    if not limits.exists():
        pytest.skip("needs /proc")
    return {line[:26].strip(): line[26:].split() for line in limits.read_text().splitlines()}


async def test_an_evaluator_cannot_open_files(pool: EvaluatorPool) -> None:
    for process in pool._processes.values():
        rows = _limits(process.pid)
        assert rows["Max open files"][:2] == ["3", "3"]
        assert rows["Max core file size"][:2] == ["0", "0"]
        assert rows["Max address space"][0] != "unlimited"


@pytest.mark.parametrize("source", [".a", "map(.b)", "1 # comment", "1 # comment \\", "def f: 1; f", "$x.y"])
async def test_check_accepts(pool: EvaluatorPool, source: str) -> None:
    assert await pool.check(source, frozenset({"x"})) is None


@pytest.mark.parametrize("source", ["", ".a +", "1) | (2", "1; def f: 2", "$y", 'import "a" as a; .', "nosuch", "1 2"])
async def test_check_refuses(pool: EvaluatorPool, source: str) -> None:
    assert await pool.check(source, frozenset({"x"}))


async def test_check_evaluates_nothing(pool: EvaluatorPool) -> None:
    assert await pool.check("last(repeat(1))", frozenset()) is None
    assert await pool.check("error(1)", frozenset()) is None
    assert pool.replaced == 0


async def test_a_question_may_have_less_time_than_the_pool_gives() -> None:
    pool = EvaluatorPool(1, 20_000, 256 * 2**20, 200_000, large=True)
    await pool.start()
    try:
        for ask in (
            pool.evaluate_json("last(repeat(1))", [], b"[1,{},0]", within_ms=100),
            pool.take_apart(b"[1,{},0]", 1_000, source="last(repeat(1))", within_ms=100),
        ):
            with pytest.raises(EvaluationFailed, match="longer than 100 ms of processor time") as failed:
                await ask
            assert failed.value.kind == "timeout"
        assert await pool.mismatch(b"3", {"type": "integer"}, within_ms=60_000) is None
        assert pool.replaced == 2
    finally:
        await pool.close()
