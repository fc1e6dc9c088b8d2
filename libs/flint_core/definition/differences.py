"""What changed between two definitions, in the words of the language: steps, functions, policies, limits.

Works on the texts alone, so that a definition whose functions come from elsewhere can be compared too. Steps are known
by their names and the names of the steps around them; a step with another name is another step.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from flint_core.definition.findings import DefinitionLimits
from flint_core.definition.reader import read

__all__ = ["Change", "differences"]

_LISTS: Final = (("do",), ("try",), ("fork", "branches"), ("catch", "do"), ("foreach", "do"))
_KINDS: Final = ("call", "run", "emit", "listen", "raise", "set", "switch", "wait", "fork", "try", "for", "do")
_USE: Final = {
    "authentications": "authentication",
    "catalogs": "catalog",
    "errors": "error",
    "functions": "function",
    "retries": "retry policy",
    "timeouts": "timeout",
}
_WORKFLOW: Final = ("timeout", "input", "output", "schedule")
_SHOWN: Final = 100
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `kind`: added, removed, changed or moved. `what`: step, function, timeout …; `name`: which one.

    `details`: for a changed one, a line for each member that differs.
    """

    kind: str
    what: str
    name: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"{self.kind} {self.what}{name}" + "".join(f"\n    {line}" for line in self.details)


def differences(old: str, new: str, limits: DefinitionLimits | None = None) -> list[Change]:
    """What is different in `new`: the workflow's own members, then `use`, then steps in their order.

    Both texts must have been accepted before. Raises ReadError.
    """
    bounds = limits or DefinitionLimits()
    before, after = read(old, bounds).plain(), read(new, bounds).plain()
    return [*_workflow(before, after), *_use(before.get("use", {}), after.get("use", {})), *_steps(before, after)]


def _workflow(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    heads = old["document"], new["document"]
    lines = [line for name in heads[0] | heads[1] for line in _line(name, heads[0], heads[1])]
    if lines:
        yield Change("changed", "document", "", tuple(lines))
    for name in _WORKFLOW:
        lines = list(_members(old.get(name, _ABSENT), new.get(name, _ABSENT), name))
        if lines:
            yield Change("changed", f"{name} of the workflow", "", tuple(lines))


def _use(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    for kind, what in _USE.items():
        before, after = old.get(kind, {}), new.get(kind, {})
        for name in before | after:
            if name not in after:
                yield Change("removed", what, name)
            elif name not in before:
                yield Change("added", what, name)
            elif before[name] != after[name]:
                yield Change("changed", what, name, tuple(_members(before[name], after[name], "")))
    secrets = old.get("secrets", []), new.get("secrets", [])
    yield from (Change("removed", "secret", name) for name in secrets[0] if name not in secrets[1])
    yield from (Change("added", "secret", name) for name in secrets[1] if name not in secrets[0])
    if old.get("extensions") != new.get("extensions"):
        yield Change("changed", "extensions", "")


def _steps(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    before, after = dict(_walk(old.get("do"), "")), dict(_walk(new.get("do"), ""))
    for name in before:
        if name not in after:
            yield Change("removed", "step", name)
    kept = [name for name in after if name in before]
    order = {name: place for place, name in enumerate(name for name in before if name in after)}
    moved = _moved([order[name] for name in kept])
    for name, body in after.items():
        if name not in before:
            yield Change("added", "step", name, tuple(_summary(body)))
            continue
        if order[name] in moved:
            yield Change("moved", "step", name)
        if before[name] != body:
            yield Change("changed", "step", name, tuple(_members(before[name], body, "")))


def _moved(places: list[int]) -> set[int]:
    """The fewest entries that stand elsewhere: all but a longest increasing run of places (patience sorting)."""
    tails: list[int] = []
    before: dict[int, int | None] = {}
    for place in places:
        spot = bisect_left(tails, place)
        before[place] = tails[spot - 1] if spot else None
        tails[spot : spot + 1] = [place]
    kept = set[int]()
    last = tails[-1] if tails else None
    while last is not None:
        kept.add(last)
        last = before[last]
    return set(places) - kept


def _walk(tasks: Any, around: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Steps with the path of their names, each without the steps within it. Depth is bounded by `read`."""
    for entry in tasks if isinstance(tasks, list) else ():
        for name, body in entry.items():
            path = f"{around}/{name}" if around else name
            own = dict(body)
            inner: list[tuple[str, Any]] = []
            for place in _LISTS:
                holder: Any = own
                for part in place[:-1]:
                    holder = holder.get(part) if isinstance(holder, dict) else None
                    if isinstance(holder, dict):
                        own[part] = holder = dict(holder)
                if isinstance(holder, dict) and isinstance(holder.get(place[-1]), list):
                    inner.append(("catch" if place == ("catch", "do") else "", holder[place[-1]]))
                    holder[place[-1]] = "…"
            yield path, own
            for word, steps in inner:
                yield from _walk(steps, f"{path}/{word}" if word else path)


def _summary(body: dict[str, Any]) -> Iterator[str]:
    kind = next((kind for kind in _KINDS if kind in body), "")
    value = body.get(kind)
    yield f"{kind}: {value}" if kind == "call" else kind


def _members(old: Any, new: Any, place: str) -> Iterator[str]:
    """A line for each member that differs, with its path."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            path = f"{place}.{name}" if place else name
            before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
            if before != after or type(before) is not type(after):
                yield from _members(before, after, path)
    elif old != new:
        yield f"{place or 'value'}: {_shown(old)} → {_shown(new)}"


def _line(name: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    yield from _members(old.get(name, _ABSENT), new.get(name, _ABSENT), name)


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(none)"
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
