"""What a reset does to the state that was rebuilt: a new generation begins.

Everything that is asked of the world from here on has another name than before: outstanding effects get new ids, steps
new idempotency keys. What was open stays open, under its new name; and the time between the point that the run was
taken back to and the reset does not count: every deadline is as far away as it was then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from flint_core.engine.branching import SPREAD, ask_again
from flint_core.engine.kernel import RUN_TIMER

if TYPE_CHECKING:
    from flint_core.effects import Effect
    from flint_core.engine.frames import Frame, Strand
    from flint_core.engine.kernel import Kernel

__all__ = ["GENERATION_BITS", "begin_generation"]

GENERATION_BITS: Final = 32
"""Ids of effects: the generation above these bits, a number that counts up below."""


def begin_generation(
    kernel: Kernel, generation: int, at_ms: int, effect_of: Callable[[int, Strand, Frame], Effect]
) -> None:
    """Begin reset generation `generation` (from 1), which was asked for at `at_ms`. Nothing may be ready to be done."""
    passed = max(0, at_ms - kernel.now)
    key_before = kernel.key_prefix()
    kernel.reset = generation
    kernel.next_effect = max(kernel.next_effect, generation << GENERATION_BITS)
    kernel.now += passed
    kernel.started += passed
    for effect_id, (strand, frame) in sorted(kernel.owners.items()):
        kernel.retract(effect_id)
        new = _rename(kernel, effect_id, frame, passed)
        _rekey(frame, key_before, kernel.key_prefix())
        kernel.owners[new] = (strand, frame)
        kernel.outbox[new] = effect_of(new, strand, frame)
    for strand in kernel.strands.values():
        for frame in strand.stack:
            if frame.since:
                frame.since += passed
    for effect_id, (strand, frame) in kernel.owners.items():
        if frame.effect == effect_id and frame.station == SPREAD and frame.plan.kind in ("for", "fork"):
            ask_again(kernel, strand, frame)
            kernel.outbox[effect_id] = effect_of(effect_id, strand, frame)
    if kernel.watched:
        kernel.retract(RUN_TIMER)
        kernel.outbox[RUN_TIMER] = kernel.run_timer()


def _rename(kernel: Kernel, effect_id: int, frame: Frame, passed: int) -> int:
    new = kernel.effect_id()
    if frame.deadline == effect_id:
        frame.deadline = new
        frame.deadline_until += passed
    elif frame.timer == effect_id:
        frame.timer = new
        frame.timer_until += passed
    else:
        frame.effect = new
        if frame.effect_until:
            frame.effect_until += passed
    return new


def _rekey(frame: Frame, before: str, now: str) -> None:
    """A request that was made before names the step by its key: another run is started for the new generation."""
    request = frame.args
    if isinstance(request, dict) and isinstance(request.get("key"), str) and request["key"].startswith(before):
        frame.args = {**request, "key": now + request["key"][len(before) :]}
