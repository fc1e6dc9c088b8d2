"""What changed between two definitions, in the words of the language."""

from __future__ import annotations

import pytest

from flint_core.definition.differences import Change, differences

HEAD = "document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}\n"
ABC = "do:\n  - a: {set: {x: 1}}\n  - b: {wait: PT1S}\n  - c: {call: noop}\n"

CASES = {
    "nothing": (ABC, ABC, []),
    "form": (ABC, ABC.replace("{x: 1}", '{"x": 1}') + "# a remark\n", []),
    "added": (ABC, ABC + "  - d: {call: http}\n", [Change("added", "step", "d", ("call: http",))]),
    "removed": (ABC, ABC.replace("  - b: {wait: PT1S}\n", ""), [Change("removed", "step", "b")]),
    "changed": (
        ABC,
        ABC.replace("PT1S", "PT2S"),
        [Change("changed", "step", "b", ("wait: PT1S → PT2S",))],
    ),
    "moved": (
        ABC,
        "do:\n  - b: {wait: PT1S}\n  - c: {call: noop}\n  - a: {set: {x: 1}}\n",
        [Change("moved", "step", "a")],
    ),
    "within": (
        "do: [{l: {for: {in: .l}, do: [{t: {try: [{a: {set: {x: 1}}}], catch: {do: [{b: {wait: PT1S}}]}}}]}}]\n",
        "do: [{l: {for: {in: .m}, do: [{t: {try: [{a: {set: {x: 2}}}], catch: {do: [{b: {wait: PT2S}}]}}}]}}]\n",
        [
            Change("changed", "step", "l", ("for.in: .l → .m",)),
            Change("changed", "step", "l/t/a", ("set.x: 1 → 2",)),
            Change("changed", "step", "l/t/catch/b", ("wait: PT1S → PT2S",)),
        ],
    ),
    "a retry": (
        "do: [{t: {try: [{a: {set: {}}}], catch: {retry: {limit: {attempt: {count: 3}}}}}}]\n",
        "do: [{t: {try: [{a: {set: {}}}], catch: {retry: {limit: {attempt: {count: 4}}}}}}]\n",
        [Change("changed", "step", "t", ("catch.retry.limit.attempt.count: 3 → 4",))],
    ),
    "use": (
        "use: {secrets: [a, b], timeouts: {t: {after: PT1S}}, functions: {f: {call: noop}}}\n" + ABC,
        "use: {secrets: [b, c], timeouts: {t: {after: PT2S}}, retries: {r: {}}}\n" + ABC,
        [
            Change("removed", "function", "f"),
            Change("added", "retry policy", "r"),
            Change("changed", "timeout", "t", ("after: PT1S → PT2S",)),
            Change("removed", "secret", "a"),
            Change("added", "secret", "c"),
        ],
    ),
    "the workflow's timeout": (
        "timeout: {after: PT1S}\n" + ABC,
        ABC,
        [Change("changed", "timeout of the workflow", "", ('timeout: {"after":"PT1S"} → (none)',))],
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_differences(what: str) -> None:
    old, new, expected = CASES[what]
    assert differences(HEAD + old, HEAD + new) == expected


def test_a_change_as_text() -> None:
    change = Change("changed", "step", "a", ("x: 1 → 2",))
    assert str(change) == "changed step a\n    x: 1 → 2"
