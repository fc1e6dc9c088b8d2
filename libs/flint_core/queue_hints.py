"""From what a definition and a start say of queueing to the hints of one run. Pure.

Compiled members (a program's `queue`), all optional: `pool`, `region`, `level` (a name; a number is the program's own
member), `fairness`, `sticky` (keys), `off_peak`, `window` (`windows.Window`), `latest_start_ms`, `start_ms`,
`finish_ms` (durations from the acceptance), `concurrency`, `rates` (`permit_hints`). A key is text with expressions
over the run's input (`.` or `$input`), which are evaluated here: what only jq evaluates is refused when a definition
is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import orjson

from flint_core.bindings import Binding
from flint_core.expressions import ExpressionFault
from flint_core.permit_hints import KeyTooLong, permits_of
from flint_core.queueing import DEFAULT_POOL, QueueHints
from flint_core.windows import Window

__all__ = ["KEY_VARIABLES", "MOST_KEY_CHARACTERS", "NOTHING", "HintInvalid", "StartHints", "resolve_hints"]

KEY_VARIABLES: Final = frozenset({"input"})
"""What the expressions of keys may read beside `.`, which is the input too."""
MOST_KEY_CHARACTERS: Final = 128
"""Of fairness and sticky keys."""


class HintInvalid(ValueError):
    """A key cannot be told from this input; the message says why, without the input's values."""


@dataclass(frozen=True, slots=True)
class StartHints:
    """What a start itself says; it goes before the definition."""

    pool: str = ""
    region: str = ""
    deadline_ms: int = 0
    not_before_ms: int = 0
    fairness_key: str = ""


NOTHING: Final = StartHints()


def resolve_hints(
    queue: Mapping[str, Any] | None, said: StartHints, workflow_id: str, input: bytes, now_ms: int
) -> QueueHints | None:
    """The run's hints; None when there are none. `now_ms`: when it is accepted. Raises HintInvalid."""
    if queue is None:
        if said == NOTHING:
            return None
        queue = {}
    keys = _Keys(input)
    finish, start, latest = (queue.get(name, 0) for name in ("finish_ms", "start_ms", "latest_start_ms"))
    try:
        concurrency, rates = permits_of(queue, workflow_id, keys.text)
    except KeyTooLong as error:
        raise HintInvalid(str(error)) from None
    latest_ms = min((now_ms + m for m in (start, latest) if m), default=0)
    hints = QueueHints(
        pool=said.pool or queue.get("pool", DEFAULT_POOL),
        region=said.region or queue.get("region", ""),
        deadline_ms=said.deadline_ms or (now_ms + finish if finish else 0),
        not_before_ms=said.not_before_ms if said.not_before_ms > now_ms else 0,
        latest_start_ms=latest_ms,
        off_peak=bool(queue.get("off_peak")),
        window=Window.from_document(queue["window"]) if "window" in queue else None,
        fairness_key=said.fairness_key or keys.short(queue.get("fairness"), "fairness"),
        concurrency=concurrency,
        rates=rates,
        sticky=keys.short(queue.get("sticky"), "sticky"),
    )
    return None if hints == _DEFAULT else hints


_DEFAULT: Final = QueueHints()


class _Keys:
    """Evaluates keys over one input, which is read when the first of them needs it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._input: Any = None
        self._read = False

    def text(self, template: Any) -> str:
        """A key's text. Raises HintInvalid when it has none."""
        value = self._value(template)
        if value is None or isinstance(value, dict | list):
            found = "nothing" if value is None else "an object or a list"
            raise HintInvalid(f"the key '{template}' gives {found} for this input; it must be text or a number")
        return value if isinstance(value, str) else orjson.dumps(value).decode()

    def short(self, template: Any, what: str) -> str:
        """The same for fairness and sticky keys, which may be nothing."""
        if template is None or self._value(template) is None:
            return ""
        text = self.text(template)
        if len(text) > MOST_KEY_CHARACTERS or "\0" in text:
            raise HintInvalid(f"the key '{what}' has more than {MOST_KEY_CHARACTERS} characters, or the character NUL")
        return text

    def _value(self, template: Any) -> Any:
        binding = _binding(template)
        if binding.constant:
            return binding.value
        if not self._read:
            self._input = orjson.loads(self._data) if self._data else {}
            self._read = True
        try:
            return binding.run(self._input, {"input": self._input}, 0, ())
        except ExpressionFault as fault:
            raise HintInvalid(f"the key '{template}' cannot be evaluated over this input: {fault}"[:500]) from None


@lru_cache(maxsize=1000)
def _binding(template: str) -> Binding:
    return Binding(template, KEY_VARIABLES)
