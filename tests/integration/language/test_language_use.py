"""What definitions reuse: functions, catalogs, extensions, secrets; and Flint's hints."""

# ruff: noqa: E501 - a table: one definition a line, as far as it goes

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from flint_sdk import Run
from support.house import House
from support.language import ANY, Case, Outcome, check, check_kit, run_cases
from support.language_world import World

TIMED = "timeout: {after: PT20S}\n"


def extended(extension: str, tasks: str, output: Any, **more: Any) -> Case:
    return Case(f"use: {{extensions: [{{note: {extension}}}]}}\ndo: {tasks}", output, **more)


EXIT = "before: [{p: {set: {n: 99}, then: exit}}]"


def replaced(kind: str, task: str, output: Any = None, **more: Any) -> Case:
    """An extension of a kind of task, which leaves by `exit` in place of the task."""
    return extended(
        f"{{extend: {kind}, when: '$task.name == \"t\"', {EXIT}}}",
        f"[{{t: {task}}}]",
        {"n": 99} if output is None else output,
        **more,
    )


async def undone(house: House, world: World, run: Run) -> None:
    steps = [step.step async for entry in house.flint.history(run.id) for step in entry.steps if step.end_time]
    assert [step for step in steps if step.endswith("/compensate")] == [
        "/do/1/b/metadata/flint/compensate",
        "/do/0/a/metadata/flint/compensate",
    ]


CASES = {
    # --- use.functions
    "function-of-a-call": Case(
        "use: {functions: {f: {call: noop, with: {output: '${ .n + 1 }'}}}}\ndo: [{a: {call: f, with: {n: 1}}}]", 2
    ),
    "function-of-tasks": Case(
        "use: {functions: {f: {do: [{x: {set: {m: '${ .n * 2 }'}}}, {y: {set: {m: '${ .m + 1 }'}}}]}}}\ndo: [{a: {call: f, with: {n: 2}}}]",
        {"m": 5},
    ),
    "function-without-with": Case(
        "use: {functions: {f: {set: {m: '${ .n }'}}}}\ndo: [{a: {call: f}}]", {"m": 3}, input={"n": 3}
    ),
    "function-of-a-function": Case(
        "use: {functions: {f: {call: g, with: {n: '${ .n + 1 }'}}, g: {set: {m: '${ .n * 10 }'}}}}\ndo: [{a: {call: f, with: {n: 1}}}]",
        {"m": 20},
    ),
    "function-members": Case(
        "use: {functions: {f: {if: '.n > 0', input: {from: .n, schema: {document: {type: object}}}, set: {m: '${ . }'}, output: {as: .m}, timeout: {after: PT5S}}}}\ndo: [{a: {call: f, with: {n: 4}, output: {as: '${ [.] }'}}}]",
        [4],
    ),
    "function-fails": Case(
        "use: {functions: {f: {raise: {error: {type: 'https://x.test/f', status: 418}}}}}\ndo: [{a: {call: f}}]",
        error={"status": 418, "instance": "/do/0/a/functions/f"},
    ),
    # --- catalogs, texts from elsewhere
    "catalog": Case(
        "use: {catalogs: {tools: {endpoint: '<http>/documents/catalog'}}}\ndo: [{a: {call: 'hello:1.0.0@tools', with: {name: Ada}}}]",
        {"said": "hello Ada"},
        stubs=None,
    ),
    "catalog-endpoint-object": Case(
        "use: {catalogs: {tools: {endpoint: {uri: '<http>/documents/guarded/catalog', authentication: {basic: {username: a, password: b}}}}}}\ndo: [{a: {call: 'hello:1.0.0@tools', with: {name: Ada}}}]",
        {"said": "hello Ada"},
        stubs=None,
    ),
    "catalog-authentication-bearer": Case(
        "use: {catalogs: {tools: {endpoint: {uri: '<http>/documents/guarded/catalog', authentication: {bearer: {token: b}}}}}}\ndo: [{a: {call: 'hello:1.0.0@tools', with: {name: Ada}}}]",
        {"said": "hello Ada"},
        stubs=None,
    ),
    "catalog-default": Case("do: [{a: {call: 'noop:1.0.0@default', with: {output: 5}}}]", 5),
    "function-by-address": Case(
        "do: [{a: {call: '<http>/documents/functions/bye.yaml', with: {name: Ada}}}]", {"said": "bye Ada"}, stubs=None
    ),
    "schema-resource": Case(
        "input: {schema: {format: json, resource: {name: order, endpoint: '<http>/documents/schemas/order.json'}}}\ndo: [{a: {set: {ok: true}}}]",
        {"ok": True},
        input={"sku": "x"},
        stubs=None,
    ),
    "schema-resource-refuses": Case(
        "do: [{a: {input: {schema: {resource: {endpoint: {uri: '<http>/documents/guarded/schemas/order.json', authentication: {basic: {username: a, password: b}}}}}}, set: {ok: true}}}]",
        error={"status": 400, "instance": "/do/0/a"},
        input={"n": 1},
        stubs=None,
    ),
    # --- extensions
    "extension-before": extended(
        "{extend: set, before: [{tell: {call: noop, with: {output: ignored}}}]}",
        "[{t: {set: {n: '${ .n + 1 }'}}}]",
        {"n": 2},
        input={"n": 1},
    ),
    "extension-after": extended(
        "{extend: set, after: [{tell: {call: noop, with: {output: ignored}, export: {as: '${ $task.name }'}}}]}",
        "[{t: {set: {n: 1}}}, {u: {do: [{v: {call: noop, with: {output: '${ $context }'}}}]}}]",
        "t",
    ),
    "extension-when-false": extended(
        f"{{extend: all, when: .n > 5, {EXIT}}}", "[{t: {set: {m: '${ .n }'}}}]", {"m": 1}, input={"n": 1}
    ),
    "extension-all": extended(f"{{extend: all, {EXIT}}}", "[{t: {wait: PT1H}}]", {"n": 99}),
    "extension-call": replaced("call", "{call: noop, with: {output: 1}}"),
    "extension-composite": replaced("composite", "{do: [{x: {wait: PT1H}}]}"),
    "extension-composite-fork": replaced("composite", "{fork: {branches: [{x: {wait: PT1H}}]}}"),
    "extension-emit": replaced("emit", "{emit: {event: {with: {type: <name>.x}}}}"),
    "extension-for": replaced("for", "{for: {in: '[1]'}, do: [{x: {wait: PT1H}}]}"),
    "extension-listen": replaced("listen", "{listen: {to: {one: {with: {type: <name>.x}}}}}"),
    "extension-raise": replaced("raise", "{raise: {error: {type: 'https://x.test/a', status: 418}}}"),
    "extension-run": replaced("run", "{run: {shell: {command: 'false'}}}"),
    "extension-set": replaced("set", "{set: {n: 1}}"),
    "extension-switch": replaced("switch", "{switch: [{x: {then: end}}]}"),
    "extension-try": replaced("try", "{try: [{x: {wait: PT1H}}], catch: {}}"),
    "extension-wait": replaced("wait", "{wait: PT1H}"),
    "extension-extension": Case(
        "use: {extensions: [{first: {extend: set, before: [{p: {set: {n: 1}, then: exit}}]}}, {second: {extend: extension, before: [{q: {set: {n: 2}, then: exit}}]}}]}\ndo: [{t: {set: {n: 0}}}]",
        ANY,
    ),
    "extension-by-what-it-calls": extended(
        '{extend: call, when: \'$task.call == "http" and ($task.with.endpoint | startswith("https://mocked"))\', before: [{p: {set: {mocked: true}, then: exit}}]}',
        "[{t: {call: http, with: {method: get, endpoint: 'https://mocked.test/x'}, timeout: {after: PT5S}}}]",
        {"mocked": True},
    ),
    # --- hints
    "hint-idempotency-key": Case(
        TIMED
        + "do: [{a: {call: http, with: {method: post, endpoint: '<http>/echo/x'}, metadata: {flint: {idempotencyKey: 'pay ${ .n }'}}, output: {as: '${ .headers[\"idempotency-key\"] }'}}}]",
        "pay 7",
        input={"n": 7},
        stubs=None,
    ),
    "hint-cache": Case(
        TIMED
        + "do: [{f: {for: {in: '[1,2,3]'}, do: [{a: {call: http, with: {method: post, endpoint: '<http>/flaky/cached/0'}, metadata: {flint: {cache: {key: 'same ${ $workflow.input.n }', ttl: PT1H}}}, output: {as: .calls}}}]}}]",
        1,
        input={"n": 1},
        stubs=None,
    ),
    "hint-cache-of-a-program": Case(
        TIMED
        + "do: [{a: {run: {shell: {command: date +%N}}, metadata: {flint: {cache: {key: 'k ${ .n }', ttl: {hours: 1}}}}, output: {as: '${ . }'}}}, {b: {run: {shell: {command: date +%N}}, metadata: {flint: {cache: {key: 'k ${ $workflow.input.n }', ttl: {hours: 1}}}}}}, {c: {set: {same: '${ $steps.a == $steps.b }'}}}]",
        {"same": True},
        input={"n": 1},
        stubs=None,
    ),
    "hint-compensate": Case(
        "use: {functions: {undo: {call: noop, with: {output: 'undone ${ .output }'}}}}\ndo: [{a: {call: noop, with: {output: A}, metadata: {flint: {compensate: undo}}}}, {b: {call: noop, with: {output: B}, metadata: {flint: {compensate: {call: noop, with: {output: '${ .input }'}}}}}}, {c: {raise: {error: {type: 'https://x.test/odd', status: 418}}}}]",
        error={"status": 418},
        check=undone,
    ),
    "hint-parallel": Case(
        "do: [{f: {for: {in: '[1,2]'}, metadata: {flint: {parallel: 2}}, do: [{a: {set: '${ $item * 2 }'}}]}}]", [2, 4]
    ),
    "hint-timezone": Case(
        "do: [{a: {set: {ok: true}}}]", {"ok": True}, head="metadata: {flint: {timezone: Europe/Berlin}}"
    ),
    # --- secrets
    "secret": Case(
        "use: {secrets: [token]}\n"
        + TIMED
        + "do: [{a: {run: {shell: {command: 'test \"$T\" = t0ken-of-the-tests && echo same', environment: {T: '${ $secrets.token }'}}}}}]",
        "same\n",
        stubs=None,
    ),
    "secret-does-not-come-back": Case(
        "use: {secrets: [token]}\n"
        + TIMED
        + "do: [{a: {run: {shell: {command: 'echo $T', environment: {T: '${ $secrets.token }'}}}}}]",
        "***\n",
        stubs=None,
    ),
    "secret-missing": Case(
        "use: {secrets: [nothing]}\n"
        + TIMED
        + "do: [{a: {run: {shell: {command: 'true', environment: {T: '${ $secrets.nothing }'}}}}}]",
        error={"type": "https://serverlessworkflow.io/spec/1.0.0/errors/authorization", "status": 403},
        stubs=None,
    ),
}
LOCAL = {name: case for name, case in CASES.items() if case.stubs is not None}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(house: House, world: World) -> dict[str, Outcome]:
    return await run_cases(house, world, CASES, "use")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CASES)
async def test_engine(name: str, outcomes: dict[str, Outcome]) -> None:
    check(CASES[name], outcomes[name])


@pytest.mark.parametrize("name", LOCAL)
def test_kit(name: str) -> None:
    check_kit(CASES[name], f"use-{name}")
