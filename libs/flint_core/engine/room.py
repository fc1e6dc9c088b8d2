"""How much a run holds, and whether a result still fits (limits.payload_bytes, limits.state_bytes).

Two bounds. What a run *keeps* (outputs that later steps read, the context, collections being iterated, results of
branches) is within `state_bytes`. With what *flows* (inputs, values and arguments of the tasks in progress) it is
within `state_bytes` and four payloads more, so that a run with nothing kept can always hand whole payloads on.

A value that is too large on its own does not count against either: it leaves for the payload store (`fit`).

Both are looked at when a task's result is taken, so that it is this task that fails, in a way it can be caught. All
sizes are functions of the state alone: what is remembered of them (`*_size`, -1 for not known) is never stored, and a
restored run decides alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from flint_core.engine.dataflow import DataFlow, Fault
from flint_core.engine.frames import Frame, Strand
from flint_core.engine.weights import held_by_for, held_by_listen
from flint_core.payloads import spill
from flint_core.problems import Problem, ProblemType
from flint_core.sizes import json_size, weigh

__all__ = ["FLOWING_PAYLOADS", "NOTEWORTHY", "Room"]

FLOWING_PAYLOADS: Final = 4
NOTEWORTHY: Final = 4_096
"""A result below this size cannot fill the room for what flows."""
_FRAME: Final = 160


class Room(DataFlow):
    """The state of one run with the account of its size."""

    __slots__ = ()

    # --- values

    def measure(self, frame: Frame, value: Any, what: str) -> int:
        """The value's weight. Raises Fault when it is beyond the payload limit or cannot be written as JSON."""
        try:
            size = json_size(value)
        except orjson.JSONEncodeError as error:
            raise Fault(self._expression_problem(frame, f"{what} cannot be written as JSON: {error}")) from None
        if size > self.limits.payload_bytes:
            raise self._too_large(frame, f"{what} is {size} bytes of JSON; the limit is {self.limits.payload_bytes}.")
        return size

    def fit(self, frame: Frame, value: Any, what: str) -> tuple[Any, int]:
        """The value as it may stay in the state, and its weight: where it is too large, references take the place of
        what is, and that is to be stored. Raises Fault when it is beyond all limits or cannot be written as JSON.
        """
        try:
            size = json_size(value)
            if size <= self.limits.payload_bytes:
                return value, size
            if size > self.limits.value_bytes:
                limit = self.limits.value_bytes
                raise self._too_large(frame, f"{what} is {size} bytes of JSON; the limit is {limit}.")
            value, payloads = spill(value, self.limits.payload_bytes)
        except orjson.JSONEncodeError as error:
            raise Fault(self._expression_problem(frame, f"{what} cannot be written as JSON: {error}")) from None
        self.large = True
        self.payloads += payloads
        return value, json_size(value)

    def hold(self, frame: Frame, size: int) -> None:
        """The frame holds this much of a collection or of results now."""
        self.kept += size - frame.held
        frame.held = size

    def keep_output(self, strand: Strand, task: int, value: Any, size: int) -> None:
        """The output of a task, for `$steps`."""
        if size < 0:
            size = weigh(value)
        for outputs, sizes in self._keepers(strand, task):
            self.kept += size - sizes.get(task, 0)
            outputs[task] = value
            sizes[task] = size

    def _keepers(self, strand: Strand, task: int) -> Iterator[tuple[dict[int, Any], dict[int, int]]]:
        """Who keeps the output of a task that ended in this strand: its branch, and whoever outside names it."""
        while strand.parent >= 0:
            yield strand.outputs, strand.output_sizes
            strand = self.strands[strand.parent]
            if task not in self.plan.branch_scope(strand.stack[-1].plan).shared:
                return
        yield self.outputs, self.output_sizes

    def drop_outputs(self, strand: Strand) -> None:
        """The strand is over: what it kept for itself is kept no longer."""
        if strand.outputs:
            self.kept -= sum(strand.output_sizes.values())
            strand.outputs, strand.output_sizes = {}, {}

    def take_context(self, frame: Frame, context: Any) -> None:
        """The context that a task exports. Raises Fault when it does not fit."""
        context, size = self.fit(frame, context, "The exported context")
        self._check_kept(frame, size - self.context_size)
        self.kept += size - self.context_size
        self.context, self.context_size, self.exported = context, size, True

    def take_collection(self, frame: Frame, items: list[Any]) -> None:
        """The collection that a `for` iterates. Raises Fault when it does not fit."""
        size = self.measure(frame, items, "The collection")
        self._check_kept(frame, size)
        frame.items = items
        self.hold(frame, size)

    def keep_more(self, frame: Frame, more: int) -> None:
        """The frame holds so much more. Raises Fault when it does not fit."""
        self._check_kept(frame, more)
        self.hold(frame, frame.held + more)

    def overflow(self, frame: Frame, what: str) -> Problem | None:
        """The problem that the frame has when what the run keeps does not fit any more."""
        if self.kept <= self.limits.state_bytes:
            return None
        detail = f"With {what}, the run keeps {self.kept} bytes; the limit is {self.limits.state_bytes}."
        return self._too_large(frame, detail).problem

    # --- results

    def take(self, strand: Strand, frame: Frame) -> None:
        """The output of the top task, which is about to leave, is taken. Raises Fault when it does not fit."""
        size = frame.size
        if size < 0 or size > self.limits.payload_bytes:
            frame.value, size = self.fit(frame, frame.value, "The output")
            frame.size = size
        if not size:
            return
        last = len(strand.stack) == 1
        if last and strand.parent < 0:
            return  # the run's output: nothing is held any more
        more = size if last else 0  # a branch's output is held by its fork
        if frame.plan.keep:
            more += sum(size - sizes.get(frame.plan.index, 0) for _, sizes in self._keepers(strand, frame.plan.index))
        if frame.plan.compensation is not None:
            more += size + weigh(frame.input)
        if more:
            self._check_kept(frame, more)
        if size > NOTEWORTHY:
            self.check_flow(frame, more, None if last else strand.stack[-2], size)

    def check_flow(self, frame: Frame, more: int = 0, receiver: Frame | None = None, size: int = 0) -> None:
        """Whether all that is held fits, once `frame` has left and `receiver` has its output. Raises Fault."""
        total = self.kept + more
        for strand in self.strands.values():
            around = self.around(strand)
            for each in strand.stack:
                if receiver is None or each is not frame:
                    total += _FRAME + _own_size(each, around)
                if each is receiver:
                    total += size - (_value_size(each) if each.value is not each.raw else 0)
                around = each.value
        limit = self.limits.state_bytes + FLOWING_PAYLOADS * self.limits.payload_bytes
        if total > limit:
            raise self._too_large(frame, f"With this, the run's state is {total} bytes; the limit is {limit}.")

    def around(self, strand: Strand) -> Any:
        """What flows into the strand's first task: of a branch, its fork's input."""
        return self.strands[strand.parent].stack[-1].input if strand.parent >= 0 else None

    def recount(self) -> None:
        """Counts anew what is kept, after a restore."""
        self.context_size = weigh(self.context)
        self.output_sizes = {task: weigh(value) for task, value in self.outputs.items()}
        self.kept = self.context_size + sum(self.output_sizes.values()) + sum(note[4] for note in self.notes.values())
        for strand in self.strands.values():
            strand.output_sizes = {task: weigh(value) for task, value in strand.outputs.items()}
            self.kept += sum(strand.output_sizes.values())
            for frame in strand.stack:
                if frame.plan.kind == "listen":
                    self.hold(frame, held_by_listen(frame))
                elif frame.items is not None and frame.plan.kind == "for":
                    self.hold(frame, held_by_for(frame))
                elif frame.items is not None and frame.plan.kind == "fork":
                    self.hold(frame, sum(weigh(item) for item in frame.items))

    def _check_kept(self, frame: Frame, more: int) -> None:
        kept, limit = self.kept + more, self.limits.state_bytes
        if kept > limit:
            detail = f"With this, the run keeps {kept} bytes for later steps; the limit is {limit}."
            raise self._too_large(frame, detail)

    @staticmethod
    def _too_large(frame: Frame, detail: str) -> Fault:
        return Fault(Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", detail, frame.plan.pointer))


def _own_size(frame: Frame, around: Any) -> int:
    """What the frame adds to a snapshot: values that it shares with others are written once."""
    size = 0
    if frame.raw is not around:
        if frame.raw_size < 0:
            frame.raw_size = weigh(frame.raw)
        size += frame.raw_size
    if frame.input is not frame.raw:
        if frame.input_size < 0:
            frame.input_size = weigh(frame.input)
        size += frame.input_size
    if frame.value is not frame.raw:
        size += _value_size(frame)
    if frame.args is not None:
        if frame.args_size < 0:
            frame.args_size = weigh(frame.args)
        size += frame.args_size
    return size


def _value_size(frame: Frame) -> int:
    return frame.size if frame.size >= 0 else weigh(frame.value)
