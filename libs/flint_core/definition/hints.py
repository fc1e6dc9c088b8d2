"""`metadata.flint`: hints that Flint understands, on tasks and on the document. Whatever else it holds is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flint_core.definition import unsupported
from flint_core.definition.context import Context, kind_of
from flint_core.definition.escalating import escalation_hint
from flint_core.definition.findings import Rule, suggestion
from flint_core.definition.queueing import DOCUMENT_QUEUE_HINTS, PLACE_HINTS, document_queue, level_of, task_place
from flint_core.definition.reader import join_pointer
from flint_core.definition.retaining import retention_hint
from flint_core.schedule_policy import POLICY_MEMBERS, read_policy
from flint_core.zones import ZoneUnknown, zone_named, zone_names

if TYPE_CHECKING:
    from flint_core.definition.tasks import TaskCompiler
    from flint_core.plan import Places

__all__ = ["DOCUMENT_HINTS", "TASK_HINTS", "document_hints", "hints_of", "task_hints"]

TASK_HINTS: Final = ("idempotencyKey", "cache", "compensate", "parallel", *PLACE_HINTS)
DOCUMENT_HINTS: Final = ("timezone", "schedule", "level", "escalation", "retention", *DOCUMENT_QUEUE_HINTS)
_KEYED: Final = ("call", "emit", "run")
_CACHED: Final = ("call", "run")
_PLACED: Final = ("call", "emit", "run", "do", "for", "fork", "try")


def hints_of(context: Context, value: Any, pointer: str, known: tuple[str, ...], elsewhere: tuple[str, ...]) -> Any:
    """The hints in a `metadata` that belong here; what does not becomes findings."""
    metadata = context.mapping(value, pointer, "'metadata'", value if isinstance(value, dict) else {})
    if "flint" not in metadata:
        return {}
    place = join_pointer(pointer, "flint")
    hints = metadata["flint"]
    if not isinstance(hints, dict):
        context.mapping(hints, place, "'metadata.flint'", {})
        return {}
    found: dict[str, Any] = {}
    for name, hint in hints.items():
        spot = join_pointer(place, name)
        if name in unsupported.FLINT_HINTS:
            context.unsupported(f"the hint '{name}' here", unsupported.FLINT_HINTS[name], spot)
        elif name in known:
            found[name] = hint
        elif name in elsewhere:
            where = "the document's metadata" if name in DOCUMENT_HINTS else "a task's metadata"
            context.error(Rule.UNKNOWN_FIELD, f"the hint '{name}' belongs into {where}", spot, key=True)
        else:
            near = suggestion(name, [*known, *unsupported.FLINT_HINTS])
            context.error(Rule.UNKNOWN_FIELD, f"'{name[:80]}' is not a hint that Flint knows{near}", spot, key=True)
    return found


def document_hints(context: Context, metadata: Any) -> dict[str, Any]:
    """Members of the program that the document's hints give; `policy` are members of its schedule."""
    hints = hints_of(context, metadata, "/document/metadata", DOCUMENT_HINTS, TASK_HINTS)
    result: dict[str, Any] = {}
    place = "/document/metadata/flint"
    if "timezone" in hints:
        result["timezone"] = _timezone(context, hints["timezone"], join_pointer(place, "timezone"))
    if "schedule" in hints:
        result["policy"] = _schedule_policy(context, hints["schedule"], join_pointer(place, "schedule"))
    if "level" in hints:
        level = level_of(context, hints["level"], join_pointer(place, "level"))
        if isinstance(level, int):
            result["level"] = level
    if "escalation" in hints:
        escalation = escalation_hint(context, hints["escalation"], join_pointer(place, "escalation"))
        if escalation is not None:
            result["escalation"] = escalation
    if "retention" in hints:
        retention_s = retention_hint(context, hints["retention"], join_pointer(place, "retention"))
        if retention_s is not None:
            result["retention_s"] = retention_s
    queue = document_queue(context, hints, place)
    if "level" in hints and isinstance(level, str):
        queue["level"] = level  # what it stands for is the namespace's, when a run is accepted
    if queue:
        result["queue"] = queue
    return result


def _timezone(context: Context, value: Any, place: str) -> str:
    name = context.text(value, place, "'timezone'")
    try:
        if name:
            zone_named(name)
    except ZoneUnknown:
        near = suggestion(name, zone_names()) or "; it is an IANA name such as Europe/Berlin or UTC"
        context.error(Rule.INVALID_VALUE, f"there is no time zone '{name[:80]}'{near}", place)
    return name


def _schedule_policy(context: Context, value: Any, place: str) -> dict[str, Any]:
    """Members of the program's schedule."""
    found, problems = read_policy(context.mapping(value, place, "'schedule'", frozenset(POLICY_MEMBERS)))
    for path, message in problems:
        spot = place
        for part in path:
            spot = join_pointer(spot, part)
        context.error(Rule.INVALID_VALUE, message, spot)
    return found


def task_hints(
    compiler: TaskCompiler, metadata: Any, pointer: str, kind: str, places: Places, timed: bool
) -> dict[str, Any]:
    """Members of a task that its hints give. `parallel` is looked at by `for`."""
    context = compiler.context
    hints = hints_of(context, metadata, pointer, TASK_HINTS, DOCUMENT_HINTS)
    place = join_pointer(pointer, "flint")
    result: dict[str, Any] = {}
    for name in PLACE_HINTS:
        if name in hints and not _of_kind(context, name, kind, _PLACED, place):
            return result
    if any(name in hints for name in PLACE_HINTS):
        compiler.place = task_place(context, hints, place, compiler.place)
    if "idempotencyKey" in hints and _of_kind(context, "idempotencyKey", kind, _KEYED, place):
        spot = join_pointer(place, "idempotencyKey")
        result["idempotency_key"] = _key(context, hints["idempotencyKey"], spot, "'idempotencyKey'", places)
    if "cache" in hints and _of_kind(context, "cache", kind, _CACHED, place):
        spot = join_pointer(place, "cache")
        cache = context.mapping(hints["cache"], spot, "'cache'", frozenset({"key", "ttl"}), ("key", "ttl"))
        if len(cache) == 2:
            result["cache_key"] = _key(context, cache["key"], join_pointer(spot, "key"), "'cache.key'", places)
            ttl = context.duration(cache["ttl"], join_pointer(spot, "ttl"), places.body, "'cache.ttl'")
            result["cache_ttl"] = ttl
    if "parallel" in hints and kind != "for":
        _of_kind(context, "parallel", kind, ("for",), place)
    if "compensate" in hints:
        spot = join_pointer(place, "compensate")
        compensation = _compensation(compiler, hints["compensate"], spot, timed)
        if compensation is not None:
            result["compensate"] = compensation
    return result


def _of_kind(context: Context, name: str, kind: str, kinds: tuple[str, ...], place: str) -> bool:
    if kind in kinds:
        return True
    message = f"the hint '{name}' is for tasks of the kind {' or '.join(kinds)}, not for {kind}"
    context.error(Rule.INVALID_VALUE, message, join_pointer(place, name), key=True)
    return False


def _key(context: Context, value: Any, pointer: str, what: str, places: Places) -> Any:
    if not isinstance(value, str) or not value.strip():
        context.error(Rule.WRONG_TYPE, f"{what} must be text with an expression in it, not {kind_of(value)}", pointer)
        return None
    if "${" not in value:
        message = f"{what} is the same for every run: an expression such as ${{ .orderId }} makes it this run's own"
        context.error(Rule.INVALID_VALUE, message, pointer)
        return None
    return context.template(value, pointer, places.body)


def _compensation(compiler: TaskCompiler, value: Any, pointer: str, timed: bool) -> int | None:
    """The task that undoes another: a call of a function of `use`, or any call written here."""
    context = compiler.context
    if isinstance(value, str):
        if value not in compiler.library.names:
            near = suggestion(value, compiler.library.names) or "; define it in use.functions"
            context.error(Rule.REFERENCE, f"use.functions has no '{value[:80]}'{near}", pointer)
            return None
        body: dict[str, Any] = {"call": value}
    else:
        what = "'compensate' (the name of a function, or call and with)"
        body = context.mapping(value, pointer, what, frozenset({"call", "with"}), ("call",))
        if "call" not in body:
            return None
    if compiler.compensating:
        message = "what compensates is not compensated itself"
        context.error(Rule.INVALID_VALUE, message, pointer)
        return None
    scope = compiler.closed_scope(pointer)
    index = compiler.allocate(scope, pointer)
    if index is None:
        return None
    compiler.hidden.add(index)
    task, compiler.compensating = context.task, True
    try:
        compiler.tasks[index] = compiler.task(index, "compensate", body, pointer, scope, (), timed)
    finally:
        context.task, compiler.compensating = task, False
    return index
