"""A leg's effects: calls, timers and awaits that the machine asked for, and what came of them.

Outcomes gather in `inbox`, whoever brings them: calls that ended, timers that are due, messages for awaits, a cancel
from outside. The leg takes them from there one turn at a time and waits in `wait` while there is nothing to do. A call
that is alone runs in the leg's own task; several run in tasks of their own, which end with the leg (`stop`).

Awaits outlive legs. What the record says of them comes with the job (`recorded`); `opened` and `closed` are the
difference to it that the leg has yet to tell, whatever an earlier leg got to say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import partial
from typing import Any, Final

import orjson

from flint_core.effects import Await, Call, CancelEffect, Effect, Evaluate, Move, Timer
from flint_core.events import CallFailed, CallSucceeded, Event, TimerFired
from flint_ops.clock import now_ms
from flint_ops.logging import get_logger

__all__ = ["Effects", "Perform", "Progress"]

_STOP_CALLS_S: Final = 5.0

_log = get_logger("flint_worker.effects")

Perform = Callable[[Call], Coroutine[Any, Any, CallSucceeded | CallFailed]]
"""Executes a call."""


class Progress:
    """A call in progress, for hints."""

    __slots__ = ("call", "hinted", "message", "percent", "started_ms")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.started_ms = now_ms()
        self.hinted = False
        self.percent: float | None = None
        self.message = ""

    def report(self, percent: float | None, message: str) -> None:
        """What the function says of itself; told with the next hints."""
        if percent is not None:
            self.percent = percent
        if message:
            self.message = message
        self.hinted = False


class Effects:
    """Belongs to one leg and its event loop. Does not know the leg: the two would be a cycle for the collector."""

    def __init__(self, recorded: Collection[str] = ()) -> None:
        """`recorded`: keys of the run's awaits that are recorded as open."""
        self.inbox: deque[Event] = deque()
        self.calls: dict[int, Call] = {}
        """Asked for, not begun."""
        self.running: dict[int, asyncio.Task[CallSucceeded | CallFailed]] = {}
        self.timers: dict[int, Timer] = {}
        self.moves: dict[int, Move] = {}
        """Where calls that are to be begun want to be executed."""
        self.awaits: dict[int, Await] = {}
        """Open now."""
        self.opened: dict[int, tuple[Await, bytes]] = {}
        """Those of them that the record does not know yet, as they were opened, each with its request as JSON."""
        self.opened_bytes = 0
        self.closed: list[str] = []
        """Keys of awaits that the record has as open and that are not."""
        self._recorded: set[int] = set(map(int, recorded)) if recorded else set()
        self.progress: dict[int, Progress] = {}
        self.question: Evaluate | None = None
        """The expression that stops everything until it is answered."""
        self.stopped: BaseException | None = None
        """Why the leg cannot go on, when a call found out: LegStopped, or a defect."""
        self.alone = False
        """Whether a call runs in the leg's own task."""
        self.on_quiet: Callable[[], None] | None = None
        """Called when the last call in progress has ended."""
        self._waker: asyncio.Future[None] | None = None

    def note(self, effects: Iterable[Effect], answered: set[int]) -> None:
        """What the machine asked for since the last time. `answered`: evaluations that are recorded as failed."""
        for effect in effects:
            if isinstance(effect, Call):
                self.calls[effect.effect_id] = effect
            elif isinstance(effect, Timer):
                self.timers[effect.effect_id] = effect
            elif isinstance(effect, Await):
                self.awaits[effect.effect_id] = effect
                if effect.effect_id not in self._recorded:
                    request = orjson.dumps(effect.request)
                    self.opened[effect.effect_id] = effect, request
                    self.opened_bytes += len(request)
            elif isinstance(effect, CancelEffect):
                effect_id = effect.effect_id
                if self.awaits.pop(effect_id, None) is not None:
                    self._close(effect_id)
                    continue
                self.timers.pop(effect_id, None)
                self.moves.pop(effect_id, None)
                self.calls.pop(effect_id, None)
                running = self.running.get(effect_id)
                if running is not None:
                    running.cancel()
            elif isinstance(effect, Move):
                self.moves[effect.effect_id] = effect
            elif isinstance(effect, Evaluate) and effect.effect_id not in answered:
                self.question = effect

    # -- awaits -------------------------------------------------------------------------------------------------------

    def _close(self, effect_id: int) -> None:
        untold = self.opened.pop(effect_id, None)
        if untold is not None:
            self.opened_bytes -= len(untold[1])
        elif effect_id in self._recorded:
            self._recorded.remove(effect_id)
            self.closed.append(str(effect_id))

    def compare(self) -> None:
        """The machine has caught up with the record: awaits recorded as open that it does not have are closed."""
        for effect_id in sorted(self._recorded - self.awaits.keys()):
            self._close(effect_id)

    def take_opened(self, most: int, most_bytes: int) -> list[tuple[Await, bytes]]:
        """The next awaits to be told of; at least one if there is any."""
        taken: list[tuple[Await, bytes]] = []
        size = 0
        for effect, request in self.opened.values():
            size += len(request)
            if taken and (size > most_bytes or len(taken) >= most):
                break
            taken.append((effect, request))
        for effect, request in taken:
            del self.opened[effect.effect_id]
            self.opened_bytes -= len(request)
            self._recorded.add(effect.effect_id)
        return taken

    # -- calls --------------------------------------------------------------------------------------------------------

    @property
    def single(self) -> bool:
        """Whether exactly one call is to begin and nothing else can happen meanwhile but a command from outside."""
        return len(self.calls) == 1 and not self.running and not self.timers and not self.awaits

    def begin_alone(self) -> Progress:
        """The usual case: the call runs in the leg's own task, and is cancelled with that. `end_alone` must follow."""
        effect_id, call = self.calls.popitem()
        progress = self.progress[effect_id] = Progress(call)
        self.alone = True
        return progress

    def end_alone(self) -> None:
        """The call has ended, however. It was the only one in progress."""
        self.alone = False
        self.progress.clear()

    def begin(self, perform: Perform) -> None:
        """Begins all calls that were asked for, each in a task."""
        for effect_id, call in self.calls.items():
            self.progress[effect_id] = Progress(call)
            task = asyncio.ensure_future(perform(call))
            self.running[effect_id] = task
            task.add_done_callback(partial(self._done, effect_id))
        self.calls.clear()

    def _done(self, effect_id: int, done: asyncio.Task[CallSucceeded | CallFailed]) -> None:
        self.progress.pop(effect_id, None)
        self.running.pop(effect_id, None)
        if not done.cancelled():  # a cancelled one was not wanted any more
            error = done.exception()
            if error is None:
                self.inbox.append(done.result())
            else:
                self.stopped = error
        if not self.progress and self.on_quiet is not None:
            self.on_quiet()
        self.wake()

    async def stop(self) -> None:
        """Cancels the calls that run and waits for them, at most 5 s."""
        if not self.running:
            return
        tasks = list(self.running.values())
        for task in tasks:
            task.cancel()
        _, left = await asyncio.wait(tasks, timeout=_STOP_CALLS_S)
        if left:
            _log.warning("calls_do_not_stop", calls=len(left))

    # -- time ---------------------------------------------------------------------------------------------------------

    @property
    def next_timer_ms(self) -> int:
        """When the earliest timer is due. There must be one."""
        return min(timer.until_ms for timer in self.timers.values())

    def fire_due(self) -> None:
        """Timers whose moment has come become events, in the order of their moments."""
        now = now_ms()
        for timer in sorted(self.timers.values(), key=lambda timer: (timer.until_ms, timer.effect_id)):
            if timer.until_ms > now:
                return
            del self.timers[timer.effect_id]
            self.inbox.append(TimerFired(timer.effect_id, now))

    async def wait(self, also: asyncio.Future[Any] | None = None) -> None:
        """Until something happens: an outcome, a timer, `wake`, or `also` is done."""
        loop = asyncio.get_running_loop()
        waker = self._waker = loop.create_future()
        handle = None
        if self.timers:
            handle = loop.call_later(max(0.0, (self.next_timer_ms - now_ms()) / 1000), self.wake)
        try:
            if also is None:
                await waker
            else:
                await asyncio.wait({waker, also}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waker = None
            if handle is not None:
                handle.cancel()

    def wake(self) -> None:
        """Ends `wait`."""
        waker = self._waker
        if waker is not None and not waker.done():
            waker.set_result(None)
