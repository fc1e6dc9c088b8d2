"""Tasks that order others: do, then, switch, for, fork, raise, wait, and what holds for all tasks."""

# ruff: noqa: E501 - a table: one definition a line, as far as it goes

from __future__ import annotations

import pytest
import pytest_asyncio

from support.house import House
from support.language import Case, Outcome, check, check_kit, run_cases
from support.language_world import World

CASES = {
    # --- do and then
    "do": Case("do: [{a: {do: [{b: {set: {n: 1}}}, {c: {set: {n: '${ .n + 1 }'}}}]}}]", {"n": 2}),
    "do-nested": Case("do: [{a: {do: [{b: {do: [{c: {do: [{d: {set: {n: 4}}}]}}]}}]}}]", {"n": 4}),
    "then-continue": Case("do: [{a: {set: {n: 1}, then: continue}}, {b: {set: {n: '${ .n + 1 }'}}}]", {"n": 2}),
    "then-exit": Case(
        "do: [{a: {do: [{b: {set: {n: 1}, then: exit}}, {c: {set: {n: 9}}}]}}, {d: {set: {n: '${ .n + 1 }'}}}]",
        {"n": 2},
    ),
    "then-exit-of-the-workflow": Case("do: [{a: {set: {n: 1}, then: exit}}, {b: {set: {n: 9}}}]", {"n": 1}),
    "then-end": Case("do: [{a: {do: [{b: {set: {n: 1}, then: end}}]}}, {c: {set: {n: 9}}}]", {"n": 1}),
    "then-end-through-output": Case("do: [{a: {do: [{b: {set: {n: 1}, then: end}}]}}]\noutput: {as: '${ [.n] }'}", [1]),
    "then-name": Case(
        "do: [{a: {set: {n: 1}, then: c}}, {b: {set: {n: 9}}}, {c: {set: {n: '${ .n + 1 }'}}}]", {"n": 2}
    ),
    "then-back": Case(
        "do: [{a: {set: {n: '${ (.n // 0) + 1 }'}}}, {b: {switch: [{again: {when: .n < 5, then: a}}]}}]", {"n": 5}
    ),
    "then-in-for-ends-the-iteration": Case(
        """
do:
  - begin: {set: {n: 0}}
  - loop:
      for: {in: '${ [1, 2, 3] }'}
      do:
        - add: {set: {n: '${ .n + $item }'}, then: exit}
        - never: {set: {n: 1000}}
""",
        {"n": 6},
    ),
    # --- if
    "if-true": Case("do: [{a: {if: .n > 1, set: {n: 5}}}]", {"n": 5}, input={"n": 2}),
    "if-false": Case("do: [{a: {if: .n > 1, set: {n: 5}}}]", {"n": 1}, input={"n": 1}),
    "if-null": Case("do: [{a: {if: .missing, set: {n: 5}}}]", {"n": 1}, input={"n": 1}),
    "if-literal": Case(
        "do: [{a: {if: false, set: {n: 5}}}, {b: {if: true, set: {n: '${ .n + 1 }'}}}]", {"n": 2}, input={"n": 1}
    ),
    "if-with-braces": Case("do: [{a: {if: '${ .n == 1 }', set: {n: 5}}}]", {"n": 5}, input={"n": 1}),
    "if-on-the-raw-input": Case(
        "do: [{a: {if: .deep.n == 1, input: {from: .deep}, set: {n: '${ .n + 1 }'}}}]",
        {"n": 2},
        input={"deep": {"n": 1}},
    ),
    "if-skips-its-then": Case("do: [{a: {if: false, set: {n: 5}, then: end}}, {b: {set: {n: 2}}}]", {"n": 2}),
    "if-skips-all-kinds": Case(
        """
do:
  - a: {if: false, call: noop}
  - b: {if: false, do: [{x: {set: {n: 9}}}]}
  - c: {if: false, for: {in: '[1]'}, do: [{x: {set: {n: 9}}}]}
  - d: {if: false, fork: {branches: [{x: {set: {n: 9}}}]}}
  - e: {if: false, raise: {error: {type: 'https://x.test/a', status: 400}}}
  - f: {if: false, switch: [{x: {then: end}}]}
  - g: {if: false, try: [{x: {set: {n: 9}}}], catch: {}}
  - h: {if: false, wait: PT1H}
  - i: {if: false, emit: {event: {with: {type: never}}}}
  - j: {if: false, listen: {to: {one: {with: {type: never}}}}}
  - k: {if: false, run: {shell: {command: 'false'}}}
""",
        {"n": 1},
        input={"n": 1},
    ),
    # --- switch
    "switch-first": Case(
        "do: [{s: {switch: [{x: {when: .n == 1, then: one}}, {y: {then: two}}]}}, {one: {set: {v: one}, then: end}}, {two: {set: {v: two}}}]",
        {"v": "one"},
        input={"n": 1},
    ),
    "switch-default": Case(
        "do: [{s: {switch: [{y: {then: two}}, {x: {when: .n == 1, then: one}}]}}, {one: {set: {v: one}, then: end}}, {two: {set: {v: two}}}]",
        {"v": "two"},
        input={"n": 7},
    ),
    "switch-default-stands-first": Case(
        "do: [{s: {switch: [{y: {then: two}}, {x: {when: .n == 1, then: one}}]}}, {one: {set: {v: one}, then: end}}, {two: {set: {v: two}}}]",
        {"v": "one"},
        input={"n": 1},
    ),
    "switch-no-match": Case(
        "do: [{s: {switch: [{x: {when: .n == 1, then: end}}], then: b}}, {a: {set: {n: 9}}}, {b: {set: {n: 3}}}]",
        {"n": 3},
        input={"n": 2},
    ),
    "switch-end": Case("do: [{s: {switch: [{x: {then: end}}]}}, {a: {set: {n: 9}}}]", {"n": 2}, input={"n": 2}),
    "switch-exit": Case(
        "do: [{d: {do: [{s: {switch: [{x: {then: exit}}]}}, {a: {set: {n: 9}}}]}}, {b: {set: {n: '${ .n + 1 }'}}}]",
        {"n": 3},
        input={"n": 2},
    ),
    "switch-continue": Case(
        "do: [{s: {switch: [{x: {then: continue}}]}}, {a: {set: {n: '${ .n + 1 }'}}}]", {"n": 3}, input={"n": 2}
    ),
    # --- for
    "for": Case(
        "do: [{a: {set: {n: 0}}}, {f: {for: {in: '${ [1,2,3] }'}, do: [{x: {set: {n: '${ .n + $item }', i: '${ $index }'}}}]}}]",
        {"n": 6, "i": 2},
    ),
    "for-each-at": Case(
        "do: [{a: {set: {n: 0}}}, {f: {for: {each: x, at: k, in: '${ [5,6] }'}, do: [{s: {set: {n: '${ .n + $x * $k }'}}}]}}]",
        {"n": 6},
    ),
    "for-in-bare": Case(
        "do: [{f: {for: {in: .list}, do: [{s: {set: {list: [], last: '${ $item }'}}}]}}]",
        {"list": [], "last": 2},
        input={"list": [1, 2]},
    ),
    "for-in-literal": Case(
        "do: [{f: {for: {in: [1, '${ 1 + 1 }']}, do: [{s: {set: {last: '${ $item }'}}}]}}]", {"last": 2}
    ),
    "for-while": Case(
        "do: [{a: {set: {n: 0}}}, {f: {for: {in: '[range(100)]'}, while: .n < 10, do: [{s: {set: {n: '${ .n + $item }'}}}]}}]",
        {"n": 10},
    ),
    "for-empty": Case("do: [{f: {for: {in: '[]'}, do: [{s: {set: {n: 9}}}]}}]", {"n": 1}, input={"n": 1}),
    "for-not-a-list": Case(
        "do: [{f: {for: {in: .n}, do: [{s: {set: {n: 9}}}]}}]",
        error={"status": 400, "instance": "/do/0/f"},
        input={"n": 1},
    ),
    "for-nested": Case(
        "do: [{a: {set: {n: 0}}}, {f: {for: {each: x, in: '[1,2]'}, do: [{g: {for: {each: y, in: '[10,20]'}, do: [{s: {set: {n: '${ .n + $x * $y }'}}}]}}]}}]",
        {"n": 90},
    ),
    "for-parallel": Case(
        "do: [{f: {for: {each: x, in: '[range(20)]'}, metadata: {flint: {parallel: 5}}, do: [{s: {call: noop, with: {output: '${ $x * .by }', delay_ms: 5}}}]}}]",
        [2 * number for number in range(20)],
        input={"by": 2},
    ),
    "for-parallel-fails": Case(
        "do: [{f: {for: {each: x, in: '[1,2,3]'}, metadata: {flint: {parallel: 2}}, do: [{s: {if: $x == 2, raise: {error: {type: 'https://x.test/two', status: 422}}}}]}}]",
        error={"type": "https://x.test/two", "status": 422, "instance": "/do/0/f/do/0/s"},
    ),
    # --- fork
    "fork": Case(
        "do: [{f: {fork: {branches: [{a: {call: noop, with: {output: 1, delay_ms: 30}}}, {b: {set: {n: 2}}}]}}}]",
        [1, {"n": 2}],
    ),
    "fork-branch-of-many": Case(
        "do: [{f: {fork: {branches: [{a: {do: [{x: {set: {n: 1}}}, {y: {set: {n: '${ .n + 1 }'}}}]}}]}}}]", [{"n": 2}]
    ),
    "fork-compete": Case(
        "do: [{f: {fork: {compete: true, branches: [{a: {call: noop, with: {output: slow, delay_ms: 30000}}}, {b: {call: noop, with: {output: fast}}}]}}}]",
        "fast",
    ),
    "fork-compete-survives-a-failure": Case(
        "do: [{f: {fork: {compete: true, branches: [{a: {call: noop, with: {fail: {status: 500}}}}, {b: {call: noop, with: {output: ok, delay_ms: 50}}}]}}}]",
        "ok",
    ),
    "fork-compete-all-fail": Case(
        "do: [{f: {fork: {compete: true, branches: [{a: {raise: {error: {type: 'https://x.test/a', status: 418}}}}, {b: {raise: {error: {type: 'https://x.test/a', status: 418}}}}]}}}]",
        error={"status": 418},
    ),
    "fork-compete-false": Case("do: [{f: {fork: {compete: false, branches: [{a: {set: {n: 1}}}]}}}]", [{"n": 1}]),
    "fork-fails": Case(
        "do: [{f: {fork: {branches: [{a: {wait: PT1H}}, {b: {raise: {error: {type: 'https://x.test/a', status: 418}}}}]}}}]",
        error={"status": 418, "instance": "/do/0/f/fork/branches/1/b"},
    ),
    "fork-end": Case(
        "do: [{f: {fork: {branches: [{a: {wait: PT1H}}, {b: {set: {n: 1}, then: end}}]}}}, {z: {set: {n: 9}}}]",
        {"n": 1},
    ),
    # --- raise
    "raise-inline": Case(
        "do: [{r: {raise: {error: {type: 'https://x.test/a', status: 409, title: T, detail: D}}}}]",
        error={"type": "https://x.test/a", "status": 409, "title": "T", "detail": "D", "instance": "/do/0/r"},
    ),
    "raise-named": Case(
        "use: {errors: {sold: {type: 'https://x.test/sold', status: 409, title: Sold}}}\ndo: [{r: {raise: {error: sold}}}]",
        error={"type": "https://x.test/sold", "status": 409, "title": "Sold"},
    ),
    "raise-expressions": Case(
        "do: [{r: {raise: {error: {type: 'https://x.test/${ .kind }', status: '${ .code }', title: 'No ${ .sku }', detail: '${ .sku }', instance: /elsewhere}}}}]",
        error={"type": "https://x.test/odd", "status": 410, "title": "No chair", "detail": "chair"},
        input={"kind": "odd", "code": 410, "sku": "chair"},
    ),
    "raise-standard-type": Case(
        "do: [{r: {raise: {error: {type: 'https://serverlessworkflow.io/spec/1.0.0/errors/authorization', status: 403}}}}]",
        error={"type": "https://serverlessworkflow.io/spec/1.0.0/errors/authorization", "status": 403},
    ),
    # --- set
    "set-object": Case(
        "do: [{s: {set: {a: 1, b: '${ .x }', c: {d: ['${ .x }', 2]}, e: 'n ${ .x }'}}}]",
        {"a": 1, "b": 5, "c": {"d": [5, 2]}, "e": "n 5"},
        input={"x": 5},
    ),
    "set-expression": Case("do: [{s: {set: '${ .list | map(. * 2) }'}}]", [2, 4], input={"list": [1, 2]}),
    "set-null": Case("do: [{s: {set: {a: null, b: '${ .missing }'}}}]", {"a": None, "b": None}),
    # --- wait
    "wait-object": Case("do: [{w: {wait: {milliseconds: 50}}}, {s: {set: {ok: true}}}]", {"ok": True}, least_s=0.05),
    "wait-object-all-units": Case(
        "do: [{w: {wait: {days: 0, hours: 0, minutes: 0, seconds: 0, milliseconds: 30}}}, {s: {set: {ok: true}}}]",
        {"ok": True},
        least_s=0.03,
    ),
    "wait-iso": Case("do: [{w: {wait: PT0.05S}}, {s: {set: {ok: true}}}]", {"ok": True}, least_s=0.05),
    "wait-expression": Case(
        "do: [{w: {wait: '${ .pause }'}}, {s: {set: {ok: true}}}]",
        {"ok": True},
        input={"pause": "PT0.05S"},
        least_s=0.05,
    ),
    "wait-expression-object": Case(
        "do: [{w: {wait: '${ {milliseconds: .ms} }'}}, {s: {set: {ok: true}}}]",
        {"ok": True},
        input={"ms": 50},
        least_s=0.05,
    ),
    "wait-member-expression": Case(
        "do: [{w: {wait: {milliseconds: '${ .ms }'}}}, {s: {set: {ok: true}}}]",
        {"ok": True},
        input={"ms": 50},
        least_s=0.05,
    ),
    "wait-passes-its-input": Case("do: [{w: {wait: PT0S}}]", {"n": 1}, input={"n": 1}),
    "wait-bad-expression": Case(
        "do: [{w: {wait: '${ .pause }'}}]", error={"status": 400, "instance": "/do/0/w"}, input={"pause": "soon"}
    ),
    "wait-longer-than-inline": Case("do: [{w: {wait: PT1.2S}}, {s: {set: {ok: true}}}]", {"ok": True}, least_s=1.2),
    # --- timeout
    "timeout-task": Case(
        "do: [{w: {wait: PT1H, timeout: {after: {milliseconds: 50}}}}]",
        error={"type": "https://serverlessworkflow.io/spec/1.0.0/errors/timeout", "status": 408, "instance": "/do/0/w"},
    ),
    "timeout-call": Case(
        "do: [{c: {call: noop, with: {delay_ms: 60000}, timeout: {after: PT0.05S}}}]",
        error={"status": 408, "instance": "/do/0/c"},
    ),
    "timeout-group": Case(
        "do: [{d: {do: [{w: {wait: PT1H}}], timeout: {after: PT0.05S}}}]", error={"status": 408, "instance": "/do/0/d"}
    ),
    "timeout-workflow": Case("timeout: {after: PT0.05S}\ndo: [{w: {wait: PT1H}}]", error={"status": 408}),
    "timeout-named": Case(
        "use: {timeouts: {short: {after: {milliseconds: 50}}}}\ndo: [{w: {wait: PT1H, timeout: short}}]",
        error={"status": 408},
    ),
    "timeout-workflow-named": Case(
        "use: {timeouts: {short: {after: PT0.05S}}}\ntimeout: short\ndo: [{w: {wait: PT1H}}]", error={"status": 408}
    ),
    "timeout-expression": Case(
        "do: [{w: {wait: PT1H, timeout: {after: '${ .limit }'}}}]", error={"status": 408}, input={"limit": "PT0.05S"}
    ),
    "timeout-caught": Case(
        "do: [{t: {try: [{w: {wait: PT1H, timeout: {after: PT0.05S}}}], catch: {errors: {with: {status: 408}}, do: [{s: {set: {late: true}}}]}}}]",
        {"late": True},
    ),
    "timeout-not-reached": Case("do: [{c: {call: noop, with: {output: 1}, timeout: {after: PT30S}}}]", 1),
}
LOCAL = {name: case for name, case in CASES.items() if case.stubs is not None}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(house: House, world: World) -> dict[str, Outcome]:
    return await run_cases(house, world, CASES, "flow")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CASES)
async def test_engine(name: str, outcomes: dict[str, Outcome]) -> None:
    check(CASES[name], outcomes[name])


@pytest.mark.parametrize("name", LOCAL)
def test_kit(name: str) -> None:
    check_kit(CASES[name], f"flow-{name}")
