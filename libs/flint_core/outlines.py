"""The small parts of large values: what can be read of a stored object without fetching it.

An outline is the object without the members that are too large, and a note of which these are. What an expression reads
of a reference can mostly be answered from it: `.input.name` of 50 MiB is a few bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from flint_core.expressions.reads import Read
from flint_core.payloads import Reference, fill, holds_reference, is_reference, reference_of

__all__ = ["Outline", "Outlined", "outline_of", "read_outlines"]

_DEEPEST: Final = 8
_EACH: Final = 8
"""Bytes that a member costs beyond its name and its value."""

_Path = tuple[str, ...]


class Outline(NamedTuple):
    """An object without some of its members, which are named by the keys that lead there."""

    value: Any
    left_out: frozenset[_Path]


class Outlined(NamedTuple):
    """What came of reading through outlines: `found` when these told all, `wanted` those that are not known yet.

    With neither, the values themselves are needed.
    """

    found: tuple[Any, dict[str, Any]] | None
    wanted: tuple[Reference, ...]


def outline_of(value: Any, room: int) -> Outline | None:
    """The outline of an object that takes at most `room` bytes, smallest members first; None when it has none.

    Large objects within it have their small members in it too, down to 8 levels.
    """
    if type(value) is not dict or is_reference(value):
        return None
    left_out: list[_Path] = []
    kept, left = _kept(value, room, (), left_out)
    return None if left < 0 else Outline(kept, frozenset(left_out))


def _kept(value: dict[str, Any], room: int, path: _Path, left_out: list[_Path]) -> tuple[dict[str, Any], int]:
    """(what stays of an object, what is left of the room: below 0 it is not enough for the names)."""
    sizes = {key: len(orjson.dumps(member)) for key, member in value.items()}
    kept: dict[str, Any] = {}
    for key in sorted(sizes, key=sizes.__getitem__):
        member = value[key]
        room -= len(key.encode("utf-8", "replace")) + _EACH
        if sizes[key] <= room:
            kept[key] = member
            room -= sizes[key]
        elif type(member) is dict and not is_reference(member) and len(path) < _DEEPEST:
            kept[key], room = _kept(member, room, (*path, key), left_out)
        else:
            left_out.append((*path, key))
            room -= sum(map(len, path))
        if room < 0:
            break
    return {key: kept[key] for key in value if key in kept}, room


def read_outlines(
    reads: Sequence[Read], input: Any, variables: Mapping[str, Any], known: Mapping[Reference, Outline | None]
) -> Outlined:
    """Input and variables with no more in them than is read, without references, if outlines are enough for that.

    `reads` are all that is read. `known` are the outlines so far, None for what has none.
    """
    wanted: dict[Reference, None] = {}
    used: dict[Reference, Outline] = {}
    for read in reads:
        if not _told(read, input if read.root is None else variables.get(read.root), known, used, wanted):
            return Outlined(None, ())
    if wanted:
        return Outlined(None, tuple(wanted))

    walks: dict[str | None, list[tuple[str | int, ...]]] = {}
    for read in reads:
        walks.setdefault(read.root, []).append(read.keys)
    return Outlined(
        (
            _only(input, walks[None], used) if None in walks else None,
            {name: _only(value, walks[name], used) if name in walks else None for name, value in variables.items()},
        ),
        (),
    )


def _only(value: Any, walks: list[tuple[str | int, ...]], used: Mapping[Reference, Outline]) -> Any:
    """The value with nothing in its objects but what is walked to, outlines in place of references. Copies no more."""
    reference = reference_of(value)
    if reference is not None and reference in used:
        value = used[reference].value
    if not all(walks):
        return value  # all of it is read, so it holds no reference
    if type(value) is list and holds_reference(value):

        def content(inner: Reference) -> Any:
            return fill(used[inner].value, content) if inner in used else inner.to_json()

        return fill(value, content)
    if type(value) is not dict:
        return value
    below: dict[str | int, list[tuple[str | int, ...]]] = {}
    for walk in walks:
        below.setdefault(walk[0], []).append(walk[1:])
    return {key: _only(value[key], rest, used) for key, rest in below.items() if key in value}


def _told(
    read: Read,
    value: Any,
    known: Mapping[Reference, Outline | None],
    used: dict[Reference, Outline],
    wanted: dict[Reference, None],
) -> bool:
    """Whether outlines tell what is read, or may do so when that which is noted in `wanted` is known."""
    outline: Outline | None = None  # in which the value stands
    path: _Path = ()
    for key in read.keys:
        reference = reference_of(value)
        if reference is not None:
            if type(key) is not str:
                return False
            if reference not in known:
                wanted[reference] = None
                return True
            outline, path = known[reference], ()
            if outline is None:
                return False
            used[reference] = outline
            value = outline.value
        if type(value) is dict and type(key) is str:
            path = (*path, key)
            if outline is not None and path in outline.left_out:
                return False
            value = value.get(key)
        elif type(value) is list and type(key) is int and -len(value) <= key < len(value):
            value, outline = value[key], None  # nothing is left out of what stands in an array
        else:
            return True  # it leads to null or to an error, as in the whole
    if outline is not None and any(left[: len(path)] == path for left in outline.left_out):
        return False
    return not holds_reference(value)
