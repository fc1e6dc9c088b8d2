"""What the traffic runs: small workflows of every way in which a run can wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["BY_NAME", "KINDS", "LIMIT", "RATE", "TICK", "Kind"]

LIMIT: Final = 2
"""Runs of one concurrency key that are under way at a time."""

RATE: Final = 12
"""Runs of the paced workflow that begin in any second."""

_HEAD = """
document: {{dsl: 1.0.3, namespace: default, name: soak-{name}, version: 1.0.0{metadata}}}
use:
  retries:
    patient:
      delay: {{milliseconds: 50}}
      backoff: {{constant: {{}}}}
      limit: {{attempt: {{count: 20}}}}
do:
"""
_N: Final = "$workflow.input.n"


def _post(name: str, body: str) -> str:
    endpoint = f'${{ $workflow.input.url + \\"/steps/{name}\\" }}'
    return f'{{method: post, endpoint: "{endpoint}", body: {{{body}}}}}'


def _call(name: str, n: str = _N, more: str = "") -> str:
    return f"""
- {name}:
    call: http
    with: {_post(name, f'n: "${{ {n} }}"{more}')}
"""


def _retried(name: str) -> str:
    inner = "\n".join(" " * 4 + line for line in _call(name).splitlines())
    return f"""
- try-{name}:
    try: {inner}
    catch:
      errors: {{with: {{status: 503}}}}
      retry: patient
"""


def _wait(name: str, ms: int) -> str:
    return f"\n- {name}: {{wait: {{milliseconds: {ms}}}}}\n"


def _within(spaces: int, body: str) -> str:
    return "\n".join(" " * spaces + line for line in body.splitlines())


@dataclass(frozen=True)
class Kind:
    """One workflow. `signals`: whether it waits for two signals, and `events` for an event. `weight`: how often it is
    started. `steered`: whether clients pause its runs, and `reset`: take them back. `breadth`: calls that its leg makes
    at a time.
    """

    name: str
    body: str
    metadata: dict[str, Any] = field(default_factory=dict)
    events: bool = False
    signals: bool = False
    steered: bool = True
    reset: bool = True
    breadth: int = 1
    weight: int = 4

    @property
    def source(self) -> str:
        """The definition."""
        metadata = f", metadata: {{flint: {self._flow(self.metadata)}}}" if self.metadata else ""
        return _HEAD.format(name=self.name, metadata=metadata) + self.body

    def _flow(self, value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key}: {self._flow(inner)}" for key, inner in value.items()) + "}"
        return f'"{value}"' if isinstance(value, str) else str(value)


def _parallel(name: str, step: str, items: str, width: int) -> str:
    return f"""
- {name}:
    for: {{each: item, in: "${{ {items} }}"}}
    metadata: {{flint: {{parallel: {width}}}}}
    do: {_within(4, _call(step, "$item"))}
"""


_LISTEN_TWICE = """
- first:
    listen: {to: {one: {with: {type: dev.flint.signal.go}}}}
    export: {as: "${ {first: .[0].n} }"}
- second:
    listen: {to: {one: {with: {type: dev.flint.signal.go}}}}
"""
_LISTEN = """
- heard:
    listen: {to: {one: {with: {type: dev.soak.go, subject: "${ $workflow.input.key }"}}}}
"""
_CHILD = """
- child:
    run: {workflow: {namespace: default, name: soak-chain, version: 1.0.0, input: "${ $workflow.input }"}}
"""
_SAGA = f"""
- booked:
    call: http
    with: {_post("book", f'n: "${{ {_N} }}"')}
    metadata: {{flint: {{compensate: {{call: http, with: {_post("undo", "n: 0")}}}}}}}
{_wait("doubt", 400)}
- broken:
    raise: {{error: {{type: "https://soak.test/broken", status: 500, title: Broken}}}}
"""
_HELD = ', group: "${ $workflow.input.shop }"'

KINDS: Final = (
    Kind("chain", _call("first") + _retried("flaky") + _call("third", ".n"), weight=8),
    Kind("waits", _call("before") + _wait("pause", 700) + _call("between") + _wait("again", 300) + _call("after")),
    Kind("fan", _parallel("fan", "ray", "[1, 2, 3, 4]", 4) + _call("joined", "map(.n) | add"), breadth=4),
    Kind("wide", _parallel("wide", "beam", "[range(40)]", 12) + _call("met", "map(.n) | add"), breadth=12, weight=1),
    Kind("parent", _CHILD + _call("afterwards", ".n"), weight=3),
    Kind("listener", _call("ready") + _LISTEN + _call("told", ".[0].n"), events=True),
    Kind(
        "signalled",
        _call("opened") + _LISTEN_TWICE + _call("closed", "$context.first + .[0].n"),
        signals=True,
        reset=False,
    ),
    Kind("saga", _SAGA),
    Kind("large", _call("big") + _call("weigh", ".n", ', text: "${ .text }"'), weight=2),
    Kind(
        "limited",
        _call("hold", more=_HELD) + _wait("between", 30) + _call("held", more=_HELD),
        {"concurrency": {"key": "${ .shop }", "limit": LIMIT}},
        steered=False,  # a reset begins a second span of one run
    ),
    Kind("paced", _call("paced"), {"rate": {"count": RATE, "per": "PT1S"}}, steered=False, weight=2),
)

BY_NAME: Final = {kind.name: kind for kind in KINDS}

TICK: Final = Kind("tick", "\n- tick: {set: {ticked: true}}\n", steered=False)
"""What the schedule of the soak starts."""
