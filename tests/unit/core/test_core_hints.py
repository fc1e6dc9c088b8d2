"""`metadata.flint`: idempotency keys, cache keys, the time zone. And `schedule`, with the moments it names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flint_core.definition import Severity, compile_definition, unsupported
from flint_core.durations import parse_duration
from flint_core.machine import Machine
from flint_core.program import Program
from flint_core.schedule import CronInvalid, Schedule, check_cron, next_fire
from flint_core.zones import ZoneUnknown, zone_named, zone_names
from support.machines import FACTS, HEAD, Driver, start


def errors(source):
    compiled = compile_definition(source)
    assert compiled.program is None
    return [finding for finding in compiled.findings if finding.severity is Severity.ERROR]


def hinted(hints, kind="call: noop"):
    return f"do:\n  - t: {{{kind}, metadata: {{flint: {{{hints}}}}}}}\n"


# --- keys


@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("A-7", "order A-7"),
        (7, "order 7"),
        ("é", "8f4b21e5"),
        ("x" * 300, "ee0de34b"),
    ],
)
def test_a_key_of_ones_own_replaces_the_one_of_the_step(order, key):
    run = start(hinted("idempotencyKey: 'order ${ .order }'"), {"order": order}).run()
    given = run.calls[0].idempotency_key
    assert given == key if key.startswith("order") else (len(given) == 64 and given.isascii())
    again = start(hinted("idempotencyKey: 'order ${ .order }'"), {"order": order}).run()
    assert again.calls[0].idempotency_key == given


def test_a_key_that_is_nothing_fails_the_step():
    run = start(hinted("idempotencyKey: '${ .order }'"), {}).run()
    assert run.problem.status == 400 and "must not be null or empty" in run.problem.detail


def test_a_guarded_key_and_guarded_arguments_survive_a_snapshot():
    body = (
        "do: [{t: {call: noop, with: {output: '${ [.n] | map(. + 1) | @json }'},"
        " metadata: {flint: {idempotencyKey: '${ .n | @base64 }', cache: {key: '${ .n | @text }', ttl: PT1H}}}}}]\n"
    )
    run = start(body, {"n": 5})
    run.settle()
    kernel = run.machine._kernel
    again = Driver(Machine.restore(kernel.plan.program, kernel.facts, run.machine.snapshot()))
    (call,) = again.machine.pending()
    assert call == run.calls[0]
    assert (call.idempotency_key, call.cache_ttl_ms, call.arguments) == ("NQ==", 3_600_000, {"output": "[6]"})
    assert len(call.cache_key) == 64


def test_a_cache_key_belongs_to_namespace_workflow_and_function():
    body = hinted("cache: {key: '${ .k }', ttl: '${ .ttl }'}")
    one, same, other = (start(body, {"k": k, "ttl": "PT5M"}).run().calls[0] for k in ("a", "a", "b"))
    assert one.cache_key == same.cache_key != other.cache_key
    assert one.cache_ttl_ms == 300_000
    program, facts = start(body).machine._kernel.plan.program, FACTS._replace(workflow_id="x")
    driver = Driver(Machine.start(program, facts, {"k": "a", "ttl": "PT5M"}, 1))
    driver.settle()
    assert driver.calls[0].cache_key not in ("", one.cache_key)
    assert start("do: [{t: {call: noop}}]\n").run().calls[0][-2:] == ("", 0)


@pytest.mark.parametrize("ttl", ["soon", {"years": 1}, "P400D"])
def test_a_wrong_ttl_fails_the_step(ttl):
    run = start(hinted("cache: {key: '${ .k }', ttl: '${ .ttl }'}"), {"k": 1, "ttl": ttl}).run()
    assert "cache.ttl" in run.problem.detail


MISTAKES = {
    "constant key": (hinted("idempotencyKey: abc"), "the same for every run", 4),
    "empty key": (hinted("idempotencyKey: ''"), "must be text", 4),
    "undefined": (hinted("idempotencyKey: '${ $nope }'"), "$nope is not defined", 4),
    "secret": (hinted("idempotencyKey: '${ $secrets.x }'"), "$secrets", 4),
    "cache without ttl": (hinted("cache: {key: '${ .a }'}"), "needs 'ttl'", 4),
    "cache member": (hinted("cache: {key: '${ .a }', ttll: PT1S}"), "did you mean 'ttl'", 4),
    "cache duration": (hinted("cache: {key: '${ .a }', ttl: soon}"), "ISO 8601", 4),
    "kind": (hinted("idempotencyKey: '${ .a }'", "set: {x: 1}"), "not for set", 4),
    "unknown": (hinted("idempotenceKey: x"), "did you mean 'idempotencyKey'", 4),
    "place": (hinted("timezone: UTC"), "the document's metadata", 4),
    "not an object": ("do:\n  - t: {call: noop, metadata: {flint: 5}}\n", "must be an object", 4),
    "of a function that is a task": (
        "use: {functions: {f: {set: {x: 1}}}}\n" + hinted("idempotencyKey: '${ .a }'", "call: f"),
        "calls that a worker executes",
        5,
    ),
    **{name: (hinted(f"{name}: x"), "is not supported by this version", 4) for name in unsupported.FLINT_HINTS},
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(what):
    body, words, line = MISTAKES[what]
    found = errors(HEAD + "\n" + body)
    assert any(words in finding.message for finding in found) and found[0].line == line, found


# --- time zones


def zoned(name):
    return HEAD.replace("1.0.0}", f"1.0.0, metadata: {{flint: {{timezone: {name}}}}}}}")


def ms(*at, zone=UTC):
    return int(datetime(*at, tzinfo=zone).timestamp() * 1000)


def test_calendar_durations_follow_the_documents_time_zone():
    program = compile_definition(zoned("Europe/Berlin") + "do: [{w: {wait: P1M}}]\n").program
    assert program.timezone == "Europe/Berlin" and Program.decode(program.encode()) == program
    begin = ms(2026, 3, 1, 12)
    driver = Driver(Machine.start(program, FACTS, {}, begin))
    driver.settle()
    assert driver.due[0][0] == ms(2026, 4, 1, 11)  # noon plus one, also when the clock has changed
    plain = compile_definition(HEAD + "do: [{w: {wait: P1M}}]\n").program
    assert plain.timezone == "" and b"timezone" not in plain.encode()
    driver = Driver(Machine.start(plain, FACTS, {}, begin))
    driver.settle()
    assert driver.due[0][0] == ms(2026, 4, 1, 12)


def test_zones_are_known_by_name():
    assert {"UTC", "Europe/Berlin", "America/New_York"} <= zone_names()
    for wrong in ("Europe/Berlim", "../../etc/passwd", "", "/etc/localtime"):
        with pytest.raises(ZoneUnknown):
            zone_named(wrong)
    (found,) = errors(zoned("Europe/Berlim") + "do: [{t: {call: noop}}]\n")
    assert "did you mean 'Europe/Berlin'" in found.message and found.line == 1
    (found,) = errors(zoned("5") + "do: [{t: {call: noop}}]\n")
    assert "must be text" in found.message


# --- schedules

BERLIN = zone_named("Europe/Berlin")


@pytest.mark.parametrize(
    ("cron", "after", "fires"),
    [
        ("0 3 * * *", ms(2026, 1, 1, 1, 59), [ms(2026, 1, 1, 2), ms(2026, 1, 2, 2)]),
        ("@daily", ms(2026, 6, 1), [ms(2026, 6, 1, 22), ms(2026, 6, 2, 22)]),
        # 29 March 2026: 02:00 becomes 03:00. What was left out fires as soon as the clock has changed.
        ("30 2 * * *", ms(2026, 3, 28, 12), [ms(2026, 3, 29, 1), ms(2026, 3, 30, 0, 30)]),
        # 25 October 2026: 03:00 becomes 02:00. What happens twice fires once.
        ("30 2 * * *", ms(2026, 10, 24, 12), [ms(2026, 10, 25, 0, 30), ms(2026, 10, 26, 1, 30)]),
        (
            "*/30 * * * *",
            ms(2026, 10, 25, 0, 29),
            [ms(2026, 10, 25, 0, 30), ms(2026, 10, 25, 1), ms(2026, 10, 25, 1, 30)],
        ),
        ("*/20 * * * * *", ms(2026, 1, 1) + 1, [ms(2026, 1, 1) + 20_000, ms(2026, 1, 1) + 40_000]),
        ("0 0 29 2 *", ms(2026, 1, 1), [ms(2028, 2, 28, 23), ms(2032, 2, 28, 23)]),
        ("0 12 * * MON-FRI", ms(2026, 11, 20, 12), [ms(2026, 11, 23, 11)]),
    ],
)
def test_cron_follows_the_time_zone(cron, after, fires):
    schedule, found = Schedule(cron=cron), []
    for _ in fires:
        after = next_fire(schedule, after, BERLIN)
        found.append(after)
    assert found == fires


def test_every_counts_from_its_beginning():
    schedule, since = Schedule(every={"minutes": 15}), ms(2026, 1, 1, 0, 7)
    assert next_fire(schedule, since - 5, since_ms=since) == since
    assert next_fire(schedule, since, since_ms=since) == since + 900_000
    assert next_fire(schedule, since + 10**9 + 1, since_ms=since) == since + 1112 * 900_000
    monthly, since = Schedule(every="P1M"), ms(2026, 1, 31, 8, zone=BERLIN)
    moments, at = [], since
    for _ in range(4):
        at = next_fire(monthly, at, BERLIN, since)
        moments.append(datetime.fromtimestamp(at / 1000, BERLIN).strftime("%m-%d %H"))
    assert moments == ["02-28 08", "03-31 08", "04-30 08", "05-31 08"]
    late = ms(2126, 1, 1)
    assert 0 < next_fire(monthly, late, BERLIN, since) - late <= 31 * 86_400_000


def test_after_and_on():
    assert next_fire(Schedule(after="PT10S"), 5_000) == 15_000
    assert next_fire(Schedule(on={"one": {"with": {"type": "x"}}}), 5_000) is None
    assert parse_duration("P1M").times(3).months == 3


@pytest.mark.parametrize("cron", ["", "* * * *", "* * * * * * *", "61 * * * *", "a b c d e", "0 0 30 2 *", "* " * 200])
def test_what_is_no_cron_expression(cron):
    with pytest.raises(CronInvalid):
        check_cron(cron)


SCHEDULES = {
    "every": ("{every: {minutes: 5}}", Schedule(every={"minutes": 5})),
    "cron": ("{cron: '0 3 * * *'}", Schedule(cron="0 3 * * *")),
    "after": ("{after: PT1M}", Schedule(after="PT1M")),
    "on": (
        "{on: {all: [{with: {type: x}, correlate: {id: {from: .data.id}}}, {with: {type: y}}]}}",
        Schedule(
            on={"all": [{"with": {"type": "x"}, "correlate": {"id": {"from": ".data.id"}}}, {"with": {"type": "y"}}]}
        ),
    ),
}


@pytest.mark.parametrize("what", SCHEDULES)
def test_a_schedule_is_part_of_the_program(what):
    text, schedule = SCHEDULES[what]
    program = compile_definition(HEAD + f"schedule: {text}\ndo: [{{t: {{call: noop}}}}]\n").program
    assert program.schedule == schedule
    assert Program.decode(program.encode()).schedule == schedule


SCHEDULE_MISTAKES = {
    "none": ("{}", "one of every, cron, after and on"),
    "two": ("{every: PT1M, cron: '* * * * *'}", "one of every, cron, after and on"),
    "member": ("{evry: PT1M}", "did you mean 'every'"),
    "expression": ("{every: '${ .x }'}", "cannot have expressions"),
    "duration": ("{after: soon}", "ISO 8601"),
    "too often": ("{every: {milliseconds: 5}}", "at least 100 milliseconds"),
    "cron": ("{cron: '61 * * * *'}", "minute"),
    "fields": ("{cron: '* * *'}", "3 fields"),
    "on": ("{on: {}}", "exactly one of"),
    "until": ("{on: {any: [], until: .x}}", "is for listen"),
    "filter": ("{on: {one: {wiht: {type: x}}}}", "did you mean 'with'"),
    "empty filter": ("{on: {one: {with: {}}}}", "at least one attribute"),
}


@pytest.mark.parametrize("what", SCHEDULE_MISTAKES)
def test_mistakes_in_a_schedule(what):
    text, words = SCHEDULE_MISTAKES[what]
    found = errors(HEAD + f"schedule: {text}\ndo: [{{t: {{call: noop}}}}]\n")
    assert any(words in finding.message and finding.line == 2 for finding in found), found


def test_a_far_moment_is_found_without_counting_to_it():
    begin = datetime.now(UTC)
    assert next_fire(Schedule(every={"milliseconds": 1000}), ms(2900, 1, 1)) == ms(2900, 1, 1) + 1000
    assert datetime.now(UTC) - begin < timedelta(seconds=5)
