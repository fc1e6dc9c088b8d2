"""What is remembered of large values: enough to read their small members without fetching them again.

The first question that reads a member of a stored value has it fetched; so has the second, which also makes its outline
(`flint_core.outlines`). From then on what the outline tells is answered from it: a loop over a large input whose every
iteration names `$workflow.input.name` fetches that input twice on each worker, not once for each iteration. Outlines
are remembered by content and namespace, the least recently used leave first.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakValueDictionary

import orjson

from flint_core.effects import Evaluate
from flint_core.expressions import Expression, ExpressionSyntaxError, compile_expression
from flint_core.outlines import Outline, read_outlines
from flint_core.payloads import Reference

__all__ = ["Outlines", "compiled"]

_ROUNDS: Final = 8
"""Stored values within stored ones that one question may be read through."""
_ENTRY: Final = 300
"""Bytes that an entry takes beyond its outline."""

_Key = tuple[str, Reference]
_Make = Callable[[str, Reference, int], Awaitable[Outline | None]]


@dataclass(frozen=True, slots=True)
class _Entry:
    made: bool
    outline: Outline | None
    size: int


_MET: Final = _Entry(False, None, _ENTRY)


class Outlines:
    """For one event loop; safe for concurrent use. `most_bytes` of room, `each_bytes` for one; 0: none are remembered.

    `make(namespace, reference, room)` gives an outline of at most so many bytes, None when the value has none; what it
    raises goes to those who asked.
    """

    def __init__(self, make: _Make, most_bytes: int, each_bytes: int) -> None:
        self._make = make
        self._most = most_bytes
        self._each = min(each_bytes, most_bytes)
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._used = 0
        self._making: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()

    async def read(self, namespace: str, question: Evaluate) -> Evaluate | None:
        """The same question without references in it; None when the values themselves are needed, or it is the first
        time that they are asked for.
        """
        expression = compiled(question.source, tuple(sorted(question.variables)))
        if not self._most or expression is None or expression.reads is None:
            return None
        known: dict[Reference, Outline | None] = {}
        for _ in range(_ROUNDS):
            found, wanted = read_outlines(expression.reads, question.input, question.variables, known)
            if found is not None:
                return replace(question, input=found[0], variables=found[1])
            if not wanted or not self._met(namespace, wanted):
                return None
            for reference in wanted:
                known[reference] = await self._outline(namespace, reference)
        return None

    def _met(self, namespace: str, references: tuple[Reference, ...]) -> bool:
        """Whether all were asked for before. From now on they were."""
        fresh = [(namespace, reference) for reference in references if (namespace, reference) not in self._entries]
        for key in fresh:
            self._put(key, _MET)
        return not fresh

    async def _outline(self, namespace: str, reference: Reference) -> Outline | None:
        key = (namespace, reference)
        lock = self._making.setdefault(key, asyncio.Lock())
        async with lock:
            entry = self._entries.get(key, _MET)
            if not entry.made:
                outline = await self._make(namespace, reference, self._each)
                size = 0 if outline is None else len(orjson.dumps([outline.value, list(outline.left_out)]))
                entry = _Entry(True, outline, _ENTRY + size)
                self._put(key, entry)
            else:
                self._entries.move_to_end(key)
            return entry.outline

    def _put(self, key: _Key, entry: _Entry) -> None:
        before = self._entries.pop(key, None)
        self._used += entry.size - (0 if before is None else before.size)
        self._entries[key] = entry
        while self._used > self._most:
            self._used -= self._entries.popitem(last=False)[1].size


@functools.lru_cache(maxsize=1024)
def compiled(source: str, variables: tuple[str, ...]) -> Expression | None:
    """The expression; None when its text is not one, or is only jq's to judge."""
    try:
        return compile_expression(source, variables=frozenset(variables))
    except ExpressionSyntaxError:
        return None
