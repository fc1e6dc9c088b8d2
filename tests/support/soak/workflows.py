"""What the traffic runs: small workflows of every way in which a run can wait, and how each must end."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "Kind"]

_HEAD = """
document: {{dsl: 1.0.3, namespace: default, name: {name}, version: 1.0.0}}
use:
  retries:
    patient:
      delay: {{milliseconds: 50}}
      backoff: {{constant: {{}}}}
      limit: {{attempt: {{count: 20}}}}
do:
"""


def _call(name: str, more: str = "") -> str:
    return f"""
- {name}:
    try:
    - {name}:
        call: http
        with: {{method: post, endpoint: "${{ $workflow.input.url + \\"/steps/{name}\\" }}"}}
        {more}
    catch:
      errors: {{with: {{status: 503}}}}
      retry: patient
"""


def _wait(name: str, ms: int) -> str:
    return f"\n- {name}: {{wait: {{milliseconds: {ms}}}}}\n"


@dataclass(frozen=True)
class Kind:
    """One workflow. `state`: its end, unless it is cancelled. `events`: whether it waits for one. `last`: the step
    whose call its output comes from; empty when it has none. `calls`: how many different calls one run makes.
    """

    name: str
    body: str
    calls: int
    state: str = "SUCCEEDED"
    events: bool = False
    last: str = ""

    @property
    def source(self) -> str:
        """The definition."""
        return _HEAD.format(name=f"soak-{self.name}") + self.body


def _indented(body: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in body.splitlines())


KINDS = (
    Kind("chain", _call("first") + _call("flaky") + _call("third"), 3, last="third"),
    Kind("waits", _call("before") + _wait("pause", 700) + _call("between") + _wait("again", 300) + _call("after"), 3),
    Kind(
        "fan",
        """
- fan:
    for: {each: item, in: "${ [1, 2, 3, 4] }"}
    metadata: {flint: {parallel: 4}}
    do:
"""
        + _indented(_call("ray"), 4)
        + _call("joined"),
        5,
        last="joined",
    ),
    Kind(
        "parent",
        """
- child:
    run: {workflow: {namespace: default, name: soak-chain, version: 1.0.0, input: {url: "${ $workflow.input.url }"}}}
"""
        + _call("afterwards"),
        1,
        last="afterwards",
    ),
    Kind(
        "listener",
        _call("ready")
        + """
- heard:
    listen:
      to: {one: {with: {type: dev.soak.go, subject: "${ $workflow.input.key }"}}}
"""
        + _call("told"),
        2,
        events=True,
        last="told",
    ),
    Kind(
        "saga",
        """
- booked:
    call: http
    with: {method: post, endpoint: "${ $workflow.input.url + \\"/steps/book\\" }"}
    metadata:
      flint:
        compensate:
          call: http
          with: {method: post, endpoint: "${ $workflow.input.url + \\"/steps/undo\\" }"}
"""
        + _wait("doubt", 400)
        + """
- broken:
    raise: {error: {type: "https://soak.test/broken", status: 500, title: Broken}}
""",
        2,
        state="FAILED",
    ),
)
