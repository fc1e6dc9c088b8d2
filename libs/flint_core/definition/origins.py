"""Where steps come from: a step of a function, an extension or a catalog stands elsewhere in the text than in the run.

A step's pointer names it within the run (`/do/0/fetch/functions/goods/do/1/ask`), so that every use has steps of its
own. Findings have to name the text. An origin maps the first to the second.
"""

from __future__ import annotations

from dataclasses import dataclass

from flint_core.definition.reader import Node

__all__ = ["Origin", "Origins"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What stands below a pointer of the run stands below `pointer` of this text.

    `label` names a text other than the definition; `at` is then the place in the definition that asked for it.
    """

    root: Node
    pointer: str
    label: str = ""
    at: str = ""


class Origins:
    """The origins of a definition that is being compiled."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._origins: dict[str, Origin] = {}

    def add(self, pointer: str, origin: Origin) -> None:
        """What is below `pointer` comes from `origin`."""
        self._origins[pointer] = origin

    def of(self, pointer: str) -> Origin:
        """Where a pointer of the run stands: the text, and the pointer in it."""
        prefix = pointer
        while prefix:
            origin = self._origins.get(prefix)
            if origin is not None:
                return Origin(origin.root, origin.pointer + pointer[len(prefix) :], origin.label, origin.at)
            prefix = prefix.rpartition("/")[0]
        return Origin(self._root, pointer)
