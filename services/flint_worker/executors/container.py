"""`run: container`: a container on the worker's engine.

States of one call: PULL (the image, as the policy says) → CREATE (under a name made of the step's idempotency key, so a
repeat finds the container of the first try) → RUN (attached; or followed by its log, when it was there already) →
COLLECT (exit code) → CLEAN (by its lifetime). A cancelled or late call stops its container in the background. Those
to be removed later, or that nobody wants any more because their worker died, are found by their labels and removed by
whichever worker of the machine looks next.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, Final

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_ops.logging import get_logger
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.arguments import check_arguments, failure
from flint_worker.executors.container_order import AFTER_LABEL, KEY_LABEL, UNTIL_LABEL, Order, order_of
from flint_worker.executors.engines import Engine, Said
from flint_worker.executors.programs import limits_of, result_of
from flint_worker.processes import EndedBy, Ending

__all__ = ["ContainerExecutor"]

_CALL_S: Final = 60.0
_SWEEP_S: Final = 60.0

_log = get_logger("flint_worker.container")


class ContainerExecutor:
    """The function `container`."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._containers = settings.worker.containers
        self._engine = engine
        self._places = asyncio.Semaphore(self._containers.concurrency)
        self._ending: set[asyncio.Task[None]] = set()
        self._sweeper = asyncio.create_task(self._sweep())

    @property
    def unfinished(self) -> int:
        """Containers that are being stopped although their calls have ended."""
        return len(self._ending)

    async def close(self) -> None:
        """Waits until what is being stopped has stopped."""
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        if self._ending:
            await asyncio.wait(self._ending, timeout=_CALL_S)

    async def execute(self, call: ResolvedCall) -> Any:
        """What the container wrote, or as `return` says. Raises ExecutionFailed."""
        check_arguments(call)
        order = order_of(call, self._containers)
        waits = call.arguments.get("await", True)
        limit_s = self._containers.timeout_s
        if waits and call.deadline_s is not None:
            limit_s = min(limit_s, call.deadline_s)
        begun = created = False
        try:
            async with self._places:
                await self._pull(call, order)
                async with asyncio.timeout(limit_s):
                    begun = True
                    existing = await self._create(call, order)
                    created = True
                    if not waits:
                        await self._start(call, order)
                        return None
                    return await self._outcome(call, order, existing)
        except asyncio.CancelledError:
            if begun:
                self._stop(order, surely_ours=created)
            raise
        except TimeoutError:
            if begun:
                self._stop(order, surely_ours=created)
            raise failure(call, ProblemType.TIMEOUT, 408, "The container took too long") from None
        except OSError as error:
            detail = type(error).__name__
            raise failure(call, ProblemType.COMMUNICATION, 503, "The container engine failed", detail) from None

    async def _pull(self, call: ResolvedCall, order: Order) -> None:
        if order.pull != "always":
            there = await self._engine.call("image", "inspect", order.image, within_s=_CALL_S)
            if there.code == 0:
                return
            if order.pull == "never":
                detail = f"{order.image} is not on this worker, and pullPolicy is never"
                raise failure(call, ProblemType.CONFIGURATION, 400, "No such image", detail)
        pulled = await self._engine.call("pull", "--quiet", order.image, within_s=self._containers.pull_s)
        if pulled.code != 0:
            raise failure(call, ProblemType.COMMUNICATION, 503, "The image cannot be pulled", pulled.error)

    async def _create(self, call: ResolvedCall, order: Order) -> dict[str, Any] | None:
        """Creates it; when one of that name is there already and of this step, that one's description."""
        made = await self._engine.call("create", *order.words, file=order.environment, within_s=_CALL_S)
        if made.code == 0:
            return None
        there = await self._described(order.name)
        if there is None:
            raise failure(call, ProblemType.CONFIGURATION, 400, "The container cannot be created", made.error)
        if there["Config"]["Labels"].get(KEY_LABEL) != order.key:
            detail = f"a container {order.name} is there already and belongs to somebody else"
            raise failure(call, ProblemType.RUNTIME, 409, "The container's name is taken", detail)
        return None if there["State"]["Status"] in ("created", "configured") else there

    async def _start(self, call: ResolvedCall, order: Order) -> None:
        begun = await self._engine.call("start", order.name, within_s=_CALL_S)
        if begun.code != 0 and await self._described(order.name) is not None:
            raise self._not_started(call, begun)

    async def _outcome(self, call: ResolvedCall, order: Order, existing: dict[str, Any] | None) -> Any:
        """Runs it to its end, or follows one that runs already; then cleans up."""
        limits = limits_of(call, self._settings.worker.scripts, self._settings.limits)
        if existing is None:
            options = ("--attach", "--interactive") if order.stdin else ("--attach",)
            words = ("start", *options, order.name)
        else:
            words = ("logs", "--follow", order.name)
        async with self._awaited(order, existing) as code:
            said = await self._engine.call(
                *words, stdin=order.stdin, within_s=self._containers.timeout_s, limit=limits.output_bytes
            )
            if said.full:
                self._stop(order)
                ending = Ending(EndedBy.OUTPUT, None, None, said.stdout, said.stderr)
                return result_of(call, ending, limits, "container")
            there = await self._described(order.name)
            if there is None:
                ending = Ending(EndedBy.ITSELF, await _code(call, code), None, said.stdout, said.stderr)
                return result_of(call, ending, limits, "container")
        state = there["State"]
        if state["Status"] in ("created", "configured") or state.get("Error"):
            self._stop(order)
            raise self._not_started(call, said)
        if state.get("Running"):
            # The engine's command ended before the container: the engine was restarted, perhaps.
            self._stop(order)
            raise failure(call, ProblemType.COMMUNICATION, 503, "The container engine failed", said.error)
        if order.cleanup == "always":
            await self._engine.call("rm", "--force", "--volumes", order.name, within_s=_CALL_S)
        if state.get("OOMKilled"):
            detail = f"it may use {self._containers.memory_bytes} bytes"
            raise failure(call, ProblemType.LIMIT_EXCEEDED, 429, "The container used too much memory", detail)
        ending = Ending(EndedBy.ITSELF, int(state["ExitCode"]), None, said.stdout, said.stderr)
        return result_of(call, ending, limits, "container")

    @asynccontextmanager
    async def _awaited(self, order: Order, existing: dict[str, Any] | None) -> AsyncIterator[asyncio.Task[Said] | None]:
        """The exit code of a container that another try began, awaited beside its log.

        That try, when it still lives, removes the container as soon as it has ended, perhaps before we have looked.
        """
        if existing is None:
            yield None
            return
        waiting = asyncio.create_task(self._engine.call("wait", order.name, within_s=self._containers.timeout_s))
        try:
            yield waiting
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    def _not_started(self, call: ResolvedCall, said: Said) -> ExecutionFailed:
        return failure(call, ProblemType.CONFIGURATION, 400, "The container cannot be started", said.error)

    async def _described(self, name: str) -> dict[str, Any] | None:
        found = await self._engine.call("container", "inspect", name, within_s=_CALL_S)
        if found.code != 0:
            return None
        described: dict[str, Any] = json.loads(found.stdout)[0]
        return described

    def _stop(self, order: Order, *, surely_ours: bool = True) -> None:
        """Ends a container in the background; removes it unless its lifetime says never."""
        task = asyncio.create_task(self._end(order, surely_ours))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, order: Order, surely_ours: bool) -> None:
        grace_s = self._containers.grace_s
        try:
            if not surely_ours:
                there = await self._described(order.name)
                if there is None or there["Config"]["Labels"].get(KEY_LABEL) != order.key:
                    return
            await self._engine.call("stop", "--time", str(round(grace_s)), order.name, within_s=grace_s + _CALL_S)
            if order.cleanup != "never":
                await self._engine.call("rm", "--force", "--volumes", order.name, within_s=_CALL_S)
        except (OSError, TimeoutError) as error:
            _log.warning("container_stays", container=order.name, error=type(error).__name__)

    async def _sweep(self) -> None:
        """Now and then: removes containers whose time has come. Failures are logged; the next round tries again."""
        while True:
            for label in (AFTER_LABEL, UNTIL_LABEL):
                try:
                    await self._sweep_label(label)
                except (OSError, TimeoutError, ValueError, KeyError, IndexError) as error:
                    _log.warning("sweep_failed", error=type(error).__name__)
            await asyncio.sleep(_SWEEP_S)

    async def _sweep_label(self, label: str) -> None:
        listed = await self._engine.call(
            "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={label}", within_s=_CALL_S
        )
        for name in listed.stdout.decode().split():
            there = await self._described(name)
            if there is None or not _is_over(there, label, time.time()):
                continue
            await self._engine.call("rm", "--force", "--volumes", name, within_s=_CALL_S)


async def _code(call: ResolvedCall, waiting: asyncio.Task[Said] | None) -> int:
    """What a container that is gone ended with, as the engine told who waited for it. Raises ExecutionFailed."""
    if waiting is not None:
        await asyncio.wait({waiting}, timeout=_CALL_S)
        if waiting.done() and waiting.exception() is None:
            told = waiting.result()
            with suppress(ValueError):
                return int(told.stdout)
    raise failure(call, ProblemType.RUNTIME, 500, "The container was lost", "somebody removed it")


def _is_over(there: dict[str, Any], label: str, now: float) -> bool:
    value = float(there["Config"]["Labels"][label])
    if label == UNTIL_LABEL:
        return now > value
    if there["State"]["Status"] != "exited":
        return False
    ended = there["State"]["FinishedAt"]
    with suppress(ValueError):
        moment = datetime.fromisoformat(ended[:19] + "+00:00" if ended.endswith("Z") else ended)
        return now > moment.timestamp() + value
    return False
