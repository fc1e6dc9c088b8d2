"""`metadata.flint.escalation` of a document: what is to happen when runs of the workflow fail again and again."""

from __future__ import annotations

from typing import Any, Final

from flint_core.cloud_events import TYPE_CHARACTERS
from flint_core.definition.context import Context, kind_of
from flint_core.definition.findings import Rule
from flint_core.definition.reader import join_pointer
from flint_core.durations import DurationError, parse_duration

__all__ = ["ESCALATION_MEMBERS", "escalation_hint"]

ESCALATION_MEMBERS: Final = frozenset({"failures", "within", "notify", "pause"})
MOST_FAILURES: Final = 1_000
MOST_WITHIN_MS: Final = 31 * 86_400_000


def escalation_hint(context: Context, value: Any, place: str) -> dict[str, Any] | None:
    """The compiled members: `failures`, `within_ms`, and `notify`, `pause` where they are set."""
    members = context.mapping(value, place, "'escalation'", ESCALATION_MEMBERS, ("failures", "within"))
    failures, within = members.get("failures"), members.get("within")
    if failures is None or within is None:
        return None
    found: dict[str, Any] = {}
    if isinstance(failures, bool) or not isinstance(failures, int) or not 1 <= failures <= MOST_FAILURES:
        message = f"'failures' must be a number from 1 to {MOST_FAILURES}"
        context.error(Rule.INVALID_VALUE, message, join_pointer(place, "failures"))
    else:
        found["failures"] = failures
    try:
        within_ms = parse_duration(within).length_ms(0)
    except DurationError as error:
        context.error(Rule.INVALID_VALUE, f"'within' is not a duration: {error}", join_pointer(place, "within"))
    else:
        if 1_000 <= within_ms <= MOST_WITHIN_MS:
            found["within_ms"] = within_ms
        else:
            message = "'within' must be one second to 31 days"
            context.error(Rule.INVALID_VALUE, message, join_pointer(place, "within"))
    if "notify" in members:
        kind = context.text(members["notify"], join_pointer(place, "notify"), "'notify'")
        if kind and len(kind) <= TYPE_CHARACTERS:
            found["notify"] = kind
        else:
            message = f"'notify' is the type of an event: 1 to {TYPE_CHARACTERS} characters"
            context.error(Rule.INVALID_VALUE, message, join_pointer(place, "notify"))
    pause = members.get("pause", False)
    if not isinstance(pause, bool):
        message = f"'pause' must be true or false, not {kind_of(pause)}"
        context.error(Rule.WRONG_TYPE, message, join_pointer(place, "pause"))
    elif pause:
        found["pause"] = True
    return found
