"""What waits for others and what starts programs: emit, listen, approval, run."""

# ruff: noqa: E501 - a table: one definition a line, as far as it goes

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from flint_sdk.testing import Approval
from support.house import House
from support.language import ANY, Case, Outcome, check, check_kit, run_cases
from support.language_world import World

TIMED = "timeout: {after: PT1M}\n"
CANCELLED = "https://flint.dev/errors/cancelled"


def listening(
    to: str, events: list[dict[str, Any]], output: Any, more: str = "", foreach: str = "", **rest: Any
) -> Case:
    """A run that listens, and events that come. Types are `<name>.a` and so on."""
    tail = f", foreach: {foreach}" if foreach else ""
    body = f"{TIMED}do: [{{l: {{listen: {{to: {to}{more}}}{tail}}}}}]"
    return Case(body, output, events=events, **rest)


def event(kind: str = "a", data: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": f"<name>.{kind}", **({} if data is None else {"data": data}), **more}


def shell(arguments: str, output: Any, more: str = "", given: str = "", **rest: Any) -> Case:
    shape = f", output: {{as: '{given}'}}" if given else ""
    return Case(
        f"{TIMED}do: [{{r: {{run: {{shell: {{{arguments}}}{more}}}{shape}}}}}]", output, **{"stubs": None, **rest}
    )


def script(arguments: str, output: Any, more: str = "", given: str = "", **rest: Any) -> Case:
    shape = f", output: {{as: '{given}'}}" if given else ""
    return Case(
        f"{TIMED}do: [{{r: {{run: {{script: {{{arguments}}}{more}}}{shape}}}}}]", output, **{"stubs": None, **rest}
    )


def container(arguments: str, output: Any, more: str = "", **rest: Any) -> Case:
    """Run by the tests' stand-in for an engine's command."""
    return Case(
        f"{TIMED}do: [{{r: {{run: {{container: {{image: alpine, {arguments}}}{more}}}}}}}]", output, stubs=None, **rest
    )


def child(arguments: str, body: str, output: Any = None, more: str = "", **rest: Any) -> Case:
    return Case(
        f"{TIMED}do: [{{r: {{run: {{workflow: {{name: <name>-child, {arguments}}}{more}}}}}}}]",
        output,
        children={"child": body},
        **rest,
    )


def approval(arguments: str, output: Any, decide: dict[str, Any], given: str = ".decision", **rest: Any) -> Case:
    kit = Approval(
        "approved" if decide["approve"] else "rejected",
        by=decide.get("decided_by", "ann"),
        comment=decide.get("comment", ""),
        fields=decide.get("fields", {}),
    )
    return Case(
        f"{TIMED}do: [{{a: {{call: approval, with: {{{arguments}}}, output: {{as: '{given}'}}}}}}]",
        output,
        decide=decide,
        stubs={"a": kit},
        **rest,
    )


A = "{with: {type: <name>.a}}"
B = "{with: {type: <name>.b}}"

CASES = {
    # --- emit
    "emit": Case(
        "do: [{e: {emit: {event: {with: {type: <name>.x, source: 'https://x.test/', data: {n: '${ .n }'}}}}, output: {as: '${ [.type, .source, .data] }'}}}]",
        ["await-emit.x", "https://x.test/", {"n": 1}],
        input={"n": 1},
    ),
    "emit-all-attributes": Case(
        """
do:
  - e:
      emit:
        event:
          with:
            id: e1
            source: /shop
            type: <name>.x
            time: '2026-01-02T03:04:05Z'
            subject: order ${ .n }
            datacontenttype: application/json
            dataschema: https://x.test/schema
            extension1: more
            data: [1]
""",
        {
            "id": "e1",
            "source": "/shop",
            "specversion": "1.0",
            "type": "await-emit-all-attributes.x",
            "time": ANY,
            "subject": "order 7",
            "datacontenttype": "application/json",
            "dataschema": "https://x.test/schema",
            "extension1": "more",
            "data": [1],
        },
        input={"n": 7},
    ),
    "emit-defaults": Case(
        "do: [{e: {emit: {event: {with: {type: <name>.x}}}, output: {as: '${ [(.id | length > 5), (.source | length > 5), .specversion] }'}}}]",
        [True, True, "1.0"],
    ),
    "emit-text-data": Case(
        "do: [{e: {emit: {event: {with: {type: <name>.x, datacontenttype: text/plain, data: hello}}}, output: {as: .data}}}]",
        "hello",
    ),
    "emit-bytes": Case(
        "do: [{e: {emit: {event: {with: {specversion: '1.0', type: <name>.x, datacontenttype: application/octet-stream, data_base64: AAH/}}}, output: {as: .data_base64}}}]",
        "AAH/",
    ),
    "emit-is-heard": Case(
        TIMED
        + "do: [{f: {fork: {branches: [{l: {listen: {to: {one: {with: {type: <name>.x}}}}}}, {d: {do: [{w: {wait: PT0.5S}}, {e: {emit: {event: {with: {type: <name>.x, source: /s, data: {n: 5}}}}}}]}}]}, output: {as: '${ .[0] }'}}}]",
        [{"n": 5}],
    ),
    # --- listen
    "listen-one": listening(f"{{one: {A}}}", [event("a", {"n": 1})], [{"n": 1}]),
    "listen-one-others-pass-by": listening(f"{{one: {A}}}", [event("b", 1), event("a", {"n": 2})], [{"n": 2}]),
    "listen-any": listening(f"{{any: [{A}, {B}]}}", [event("b", {"n": 1})], [{"n": 1}]),
    "listen-all": listening(f"{{all: [{A}, {B}]}}", [event("b", {"n": 1}), event("a", {"n": 2})], [{"n": 1}, {"n": 2}]),
    "listen-in-order-of-publishing": listening(
        f"{{any: [{A}], until: 'length == 20'}}",
        [event(data=number) for number in range(20)],
        list(range(20)),
    ),
    "listen-any-until": listening(
        f"{{any: [{A}], until: 'length == 3'}}",
        [event("a", {"n": n}) for n in range(3)],
        [{"n": 0}, {"n": 1}, {"n": 2}],
    ),
    "listen-any-until-one": listening(
        f"{{any: [{A}], until: {{one: {B}}}}}",
        [event("a", {"n": 1}), event("a", {"n": 2}), event("b", {"n": 3})],
        [{"n": 1}, {"n": 2}],
    ),
    "listen-any-until-any": listening(
        f"{{any: [{A}], until: {{any: [{B}, {{with: {{type: <name>.c}}}}]}}}}",
        [event("a", {"n": 1}), event("c")],
        [{"n": 1}],
    ),
    "listen-any-until-all": listening(
        f"{{any: [{A}], until: {{all: [{B}, {{with: {{type: <name>.c}}}}]}}}}",
        [event("c"), event("a", {"n": 1}), event("b")],
        [{"n": 1}],
    ),
    "listen-any-until-false": Case(
        f"do: [{{l: {{listen: {{to: {{any: [{A}], until: false}}}}, timeout: {{after: PT0.3S}}}}}}]",
        error={"status": 408},
    ),
    "listen-any-of-everything": Case(
        TIMED
        + "do: [{l: {listen: {to: {any: [], until: 'map(.mine? // empty) | length > 0'}}, output: {as: '${ map(.mine? // empty) }'}}}]",
        [1],
        events=[event("whatever", {"mine": 1})],
    ),
    "listen-any-of-everything-once": Case(
        TIMED + "do: [{l: {listen: {to: {any: []}}, output: {as: '${ length }'}}}]", 1, events=[event("whatever", 1)]
    ),
    "listen-read-data": listening(f"{{one: {A}}}", [event("a", {"n": 1})], [{"n": 1}], ", read: data"),
    "listen-read-envelope": listening(
        f"{{one: {A}}}", [event("a", {"n": 1}, source="/s", id="e-envelope")], [ANY], ", read: envelope"
    ),
    "listen-read-raw": listening(f"{{one: {A}}}", [event("a", {"n": 1})], ['{"n":1}'], ", read: raw"),
    "listen-with-data-expression": listening(
        "{one: {with: {type: <name>.a, data: '${ .n > 1 }'}}}", [event("a", {"n": 1}), event("a", {"n": 2})], [{"n": 2}]
    ),
    "listen-with-data-members": listening(
        "{one: {with: {type: <name>.a, data: {kind: new}}}}",
        [event("a", {"kind": "old"}), event("a", {"kind": "new", "n": 2})],
        [{"kind": "new", "n": 2}],
    ),
    "listen-with-source": listening(
        "{one: {with: {type: <name>.a, source: /right}}}",
        [event("a", 1, source="/wrong"), event("a", 2, source="/right")],
        [2],
    ),
    "listen-with-subject": listening(
        "{one: {with: {type: <name>.a, subject: '${ \"order-\" + ($input.n | tostring) }'}}}",
        [event("a", 1, subject="order-6"), event("a", 2, subject="order-7")],
        [2],
        input={"n": 7},
    ),
    "listen-with-id": listening(
        "{one: {with: {type: <name>.a, id: the-id}}}", [event("a", 1), event("a", 2, id="the-id")], [2]
    ),
    "listen-with-time": listening(
        "{one: {with: {type: <name>.a, time: '2026-01-02T03:04:05Z'}}}",
        [event("a", 1, time="2025-01-02T03:04:05Z"), event("a", 2, time="2026-01-02T03:04:05Z")],
        [2],
    ),
    "listen-with-datacontenttype": listening(
        "{one: {with: {type: <name>.a, datacontenttype: text/plain}}}",
        [event("a", "x", datacontenttype="text/plain")],
        ["x"],
    ),
    "listen-with-dataschema": listening(
        "{one: {with: {type: <name>.a, dataschema: 'https://x.test/schema'}}}",
        [event("a", 1), event("a", 2, dataschema="https://x.test/schema")],
        [2],
    ),
    "listen-with-extension": listening(
        "{one: {with: {type: <name>.a, shop: north}}}", [event("a", 1, shop="south"), event("a", 2, shop="north")], [2]
    ),
    "listen-with-regular-expression": listening(
        "{one: {with: {type: '<name>\\.[xy]+'}}}", [event("z", 1), event("xyx", 2)], [2]
    ),
    "listen-correlate-expect": listening(
        "{one: {with: {type: <name>.a}, correlate: {order: {from: .data.order, expect: '${ .order }'}}}}",
        [event("a", {"order": 6}), event("a", {"order": 7})],
        [{"order": 7}],
        input={"order": 7},
    ),
    "listen-correlate-constant": listening(
        "{one: {with: {type: <name>.a}, correlate: {order: {from: .data.order, expect: '7'}}}}",
        [event("a", {"order": "6"}), event("a", {"order": "7"})],
        [{"order": "7"}],
    ),
    "listen-correlate-first-decides": listening(
        "{all: [{with: {type: <name>.a}, correlate: {order: {from: .data.order}}}, {with: {type: <name>.b}, correlate: {order: {from: .data.order}}}]}",
        [event("a", {"order": 7}), event("b", {"order": 6}), event("b", {"order": 7, "second": True})],
        [{"order": 7}, {"order": 7, "second": True}],
    ),
    "listen-foreach": listening(
        f"{{any: [{A}], until: 'length == 2'}}",
        [event("a", {"n": 1}), event("a", {"n": 2})],
        [{"m": 10, "i": 0}, {"m": 20, "i": 1}],
        foreach="{item: x, at: k, do: [{s: {set: {m: '${ $x.n * 10 }', i: '${ $k }'}}}]}",
    ),
    "listen-foreach-defaults": listening(
        f"{{any: [{A}], until: $item.last == true}}",
        [event("a", {"n": 1}), event("a", {"n": 2, "last": True})],
        [[0, 1], [1, 2]],
        foreach="{do: [{s: {set: '${ [$index, $item.n] }'}}]}",
    ),
    "listen-foreach-output": listening(
        f"{{any: [{A}], until: 'length == 2'}}",
        [event("a", {"n": 1}), event("a", {"n": 2})],
        [2, 3],
        foreach="{do: [{s: {set: {m: '${ .n + 1 }'}}}], output: {as: .m}}",
    ),
    "listen-foreach-output-schema": listening(
        f"{{one: {A}}}",
        [event("a", {"n": 1})],
        foreach="{do: [{s: {set: {m: 1}}}], output: {schema: {document: {type: string}}}}",
        output=None,
        error={"status": 400},
    ),
    "listen-foreach-export": Case(
        f"{TIMED}do: [{{l: {{listen: {{to: {{any: [{A}], until: 'length == 2'}}}}, foreach: {{do: [{{s: {{set: {{m: '${{ .n }}'}}}}}}], export: {{as: '${{ {{seen: (($context.seen // []) + [.m])}} }}'}}}}}}}}, {{c: {{set: '${{ $context.seen }}'}}}}]",
        [1, 2],
        events=[event("a", {"n": 1}), event("a", {"n": 2})],
    ),
    "listen-timeout": Case(
        f"do: [{{l: {{listen: {{to: {{one: {A}}}}}, timeout: {{after: PT0.3S}}}}}}]",
        error={"status": 408, "instance": "/do/0/l"},
    ),
    # --- approval
    "approval": approval(
        "title: 'Pay ${ .n }?', description: As told, assignees: [ann]",
        ["approved", "ann", "fine"],
        {"approve": True, "decided_by": "ann", "comment": "fine"},
        "${ [.decision, .by, .comment] }",
        input={"n": 5},
    ),
    "approval-rejected": approval("title: Pay?, assignees: [ann]", "rejected", {"approve": False, "decided_by": "ann"}),
    "approval-form": approval(
        "title: Pay?, assignees: [ann], form: {type: object, required: [limit], properties: {limit: {type: integer}}}",
        {"limit": 5},
        {"approve": True, "decided_by": "ann", "fields": {"limit": 5}},
        ".fields",
    ),
    "approval-deadline": Case(
        "do: [{a: {call: approval, with: {title: Pay?, deadline: PT0.3S}}}]", error={"status": 408}
    ),
    "approval-deadline-object": Case(
        "do: [{a: {call: approval, with: {title: Pay?, deadline: {milliseconds: 300}}}}]", error={"status": 408}
    ),
    "approval-escalation": approval(
        "title: Pay?, assignees: [ann], escalation: {after: PT1H, assignees: [bob]}",
        "approved",
        {"approve": True, "decided_by": "ann"},
    ),
    # --- run workflow
    "run-workflow": child("input: {n: '${ .n }'}", "do: [{s: {set: {m: '${ .n + 1 }'}}}]", {"m": 6}, input={"n": 5}),
    "run-workflow-version": child("version: 1.0.0, input: {n: 1}", "do: [{s: {set: {m: '${ .n }'}}}]", {"m": 1}),
    "run-workflow-latest": child("version: latest", "do: [{s: {set: {m: '${ . }'}}}]", {"m": {}}),
    "run-workflow-namespace": child("namespace: default", "do: [{s: {set: {m: 1}}}]", {"m": 1}),
    "run-workflow-fails": child(
        "input: {}",
        "do: [{s: {raise: {error: {type: 'https://x.test/child', status: 418}}}}]",
        error={"type": "https://x.test/child", "status": 418, "instance": "/do/0/r"},
    ),
    "run-workflow-input-refused": child(
        "input: {n: x}",
        "input: {schema: {document: {type: object, properties: {n: {type: integer}}}}}\ndo: [{s: {set: {m: 1}}}]",
        error={"status": 400},
    ),
    "run-workflow-not-awaited": child(
        "input: {}", "do: [{w: {wait: PT0.1S}}]", {"n": 5}, ", await: false", input={"n": 5}
    ),
    "run-workflow-return-stdout": child("input: {}", "do: [{s: {set: {m: 1}}}]", {"m": 1}, ", return: stdout"),
    "run-workflow-return-none": child("input: {}", "do: [{s: {set: {m: 1}}}]", None, ", return: none"),
    "run-workflow-awaited": child("input: {}", "do: [{s: {set: {m: 1}}}]", {"m": 1}, ", await: true"),
    "run-workflow-unknown": Case(
        TIMED + "do: [{r: {run: {workflow: {name: <name>-nobody}}}}]", error={"instance": "/do/0/r"}, stubs=None
    ),
    # --- run shell
    "shell": shell("command: 'echo hello'", "hello\n"),
    "shell-stubbed": shell(
        "command: 'echo hello'", "HELLO", given='${ rtrimstr("\\n") | ascii_upcase }', stubs={"r": "hello\n"}
    ),
    "shell-own-variables": shell(
        "command: 'set -- a; echo ${1:-none} ${2:-none} ${FLINT_RUN_ID:+run}'", "a none run\n"
    ),
    "shell-stdin": shell("command: cat, stdin: '${ .text }'", "some text", input={"text": "some text"}),
    "shell-stdin-json": shell("command: cat, stdin: '${ .o }'", {"n": 1}, given="${ fromjson }", input={"o": {"n": 1}}),
    "shell-arguments-list": shell(
        "command: 'echo \"$1-$2\"', arguments: [a, '${ .b }']", "a-b c\n", input={"b": "b c"}
    ),
    "shell-arguments-map": shell("command: echo, arguments: {name: '${ .n }', flag: null}", ANY, input={"n": "x"}),
    "shell-environment": shell(
        "command: 'echo $SHOP', environment: {SHOP: '${ .s }'}", "north\n", input={"s": "north"}
    ),
    "shell-return-stdout": shell("command: 'echo a; echo b >&2'", "a\n", ", return: stdout"),
    "shell-return-stderr": shell("command: 'echo a; echo b >&2'", "b\n", ", return: stderr"),
    "shell-return-code": shell("command: 'exit 3'", 3, ", return: code"),
    "shell-return-all": shell(
        "command: 'echo a; echo b >&2; exit 3'", {"code": 3, "stdout": "a\n", "stderr": "b\n"}, ", return: all"
    ),
    "shell-return-none": shell("command: 'echo a'", None, ", return: none"),
    "shell-fails": shell(
        "command: 'echo why >&2; exit 3'",
        None,
        error={"type": "https://serverlessworkflow.io/spec/1.0.0/errors/runtime", "instance": "/do/0/r"},
    ),
    "shell-not-awaited": shell("command: 'sleep 0.1'", {"n": 1}, ", await: false", input={"n": 1}),
    "shell-awaited": shell("command: 'echo a'", "a\n", ", await: true"),
    "shell-timeout": Case(
        "do: [{r: {run: {shell: {command: sleep 30}}, timeout: {after: PT0.3S}}}]", error={"status": 408}, stubs=None
    ),
    # --- run script
    "script-python": script("language: python, code: 'print(1 + 1)'", "2\n"),
    "script-js": script("language: js, code: 'console.log(1 + 1)'", "2\n"),
    "script-js-template": script(
        "language: js, code: 'const a = [1, 2]; console.log(`${a.length} of ${`${a}`}`)'", "2 of 1,2\n"
    ),
    "script-javascript": script("language: javascript, code: 'console.log(1 + 1)'", "2\n"),
    "script-arguments-list": script(
        "language: python, code: 'import sys; print(sys.argv[1:])', arguments: [a, '${ .b }']",
        "['a', 'b']\n",
        input={"b": "b"},
    ),
    "script-arguments-list-js": script(
        "language: js, code: 'console.log(process.argv.slice(2).join())', arguments: [a, b]", "a,b\n"
    ),
    "script-arguments-map": script(
        "language: python, code: 'print(sum(prices))', arguments: {prices: '${ .prices }'}",
        "3\n",
        input={"prices": [1, 2]},
    ),
    "script-stdin": script(
        "language: python, code: 'import sys; print(sys.stdin.read().upper())', stdin: hallo", "HALLO\n"
    ),
    "script-environment": script(
        "language: python, code: 'import os; print(os.environ[\"SHOP\"])', environment: {SHOP: north}", "north\n"
    ),
    "script-source": script(
        "language: python, source: {endpoint: '<http>/documents/script.py'}, arguments: [x]", "from afar x\n"
    ),
    "script-source-object": script(
        "language: js, source: {name: script, endpoint: {uri: '<http>/documents/guarded/script.js', authentication: {basic: {username: a, password: b}}}}",
        "from afar\n",
    ),
    "script-return-all": script(
        "language: python, code: 'import sys; print(1); sys.exit(4)'", 4, ", return: all", given=".code"
    ),
    "script-fails": script("language: python, code: 'raise ValueError(\"no\")'", None, error={"status": 500}),
    "script-packages-not-allowed": script(
        "language: python, code: 'print(1)', packages: ['requests==2.32.3']",
        None,
        error={"type": "https://serverlessworkflow.io/spec/1.0.0/errors/configuration"},
    ),
    "script-not-awaited": script("language: python, code: 'print(1)'", {"n": 1}, ", await: false", input={"n": 1}),
    # --- run container, by a stand-in for the engine
    "container-command": container(
        "command: 'echo \"$1 $2\"', arguments: [Foo, '${ .b }']", "Foo Bar\n", input={"b": "Bar"}
    ),
    "container-command-list": container("command: [echo, one], arguments: [two]", "one two\n"),
    "container-stdin": container("command: cat, stdin: '${ .t }'", "text", input={"t": "text"}),
    "container-environment": container("command: 'echo $SHOP', environment: {SHOP: north}", "north\n"),
    "container-name": container("command: 'echo a', name: 'language-${ .n }'", "a\n", input={"n": 1}),
    "container-pull-policy-missing": container("command: 'echo a', pullPolicy: ifNotPresent", "a\n"),
    "container-pull-policy-never": container("command: 'echo a', pullPolicy: never", "a\n"),
    "container-pull-policy-always": Case(
        TIMED + "do: [{r: {run: {container: {image: remote, command: 'echo a', pullPolicy: always}}}}]",
        "a\n",
        stubs=None,
    ),
    "container-lifetime-always": container("command: 'echo a', lifetime: {cleanup: always}", "a\n"),
    "container-lifetime-never": container("command: 'echo a', lifetime: {cleanup: never}", "a\n"),
    "container-lifetime-eventually": container(
        "command: 'echo a', lifetime: {cleanup: eventually, after: PT1S}", "a\n"
    ),
    "container-ports": container("command: 'echo a', ports: {'8080': 80}", "a\n"),
    "container-volumes": container("command: 'echo a', volumes: {/tmp: /data}", "a\n"),
    "container-return": container("command: 'exit 3'", 3, ", return: code"),
    "container-no-such-image": Case(
        TIMED + "do: [{r: {run: {container: {image: nowhere}}}}]", error={"instance": "/do/0/r"}, stubs=None
    ),
}
LOCAL = {name: case for name, case in CASES.items() if case.stubs is not None}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(house: House, world: World) -> dict[str, Outcome]:
    return await run_cases(house, world, CASES, "await")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CASES)
async def test_engine(name: str, outcomes: dict[str, Outcome]) -> None:
    check(CASES[name], outcomes[name])


@pytest.mark.parametrize("name", LOCAL)
def test_kit(name: str) -> None:
    check_kit(CASES[name], f"await-{name}")
