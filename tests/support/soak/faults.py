"""Faults: drawn from a seed, then done to a running stack.

The plan depends on the seed alone; what it meets depends on the machine. A fault is over when its effect is taken back
(a held process goes on, a link is whole); what was killed is started again by the supervisor.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flint_stack.errors import StackError
from support.soak.evidence import Stall
from support.soak.links import Links
from support.stack import RunningStack

__all__ = ["POINTS", "Fault", "Saboteur", "draw_plan"]

SERVERS = ("postgres", "nats", "etcd")
SERVICES = ("scheduler-1", "scheduler-2", "registry-1", "registry-2", "worker-1", "worker-2", "worker-3", "gateway")
POINTS = (
    *(
        f"commit.{lane}.{side}"
        for lane in ("accept", "open", "fold", "sweep", "generation", "schedules", "transaction")
        for side in ("before", "after")
    ),
    *(
        f"{action}.{side}"
        for action in ("append", "call", "start", "etcd.PutRequest", "etcd.TxnRequest", "etcd.LeaseGrantRequest")
        for side in ("before", "after")
    ),
)
_LINKS = (
    *((f"scheduler-{n}", other) for n in (1, 2) for other in SERVERS),
    *((f"worker-{n}", other) for n in (1, 2, 3) for other in ("nats", "registry-1", "registry-2")),
    *((f"registry-{n}", other) for n in (1, 2) for other in ("etcd", "nats")),
    *(("gateway", other) for other in ("scheduler-1", "scheduler-2", "nats")),
)


@dataclass(frozen=True)
class Fault:
    """One fault. `at_s`: when it begins; `for_s`: how long a hold, a pause or a cut lasts; `passes`: of a failpoint."""

    at_s: float
    kind: str
    target: str
    for_s: float = 0.0
    passes: int = 0

    def __str__(self) -> str:
        lasts = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.at_s:5.1f} s  {self.kind} {self.target}{lasts}{f' after {self.passes}' if self.passes else ''}"


def draw_plan(seed: int, length_s: float, count: int) -> list[Fault]:
    """Faults in order of time."""
    draw = random.Random(seed)
    kinds = {"kill": 4, "point-kill": 5, "point-stop": 3, "pause": 4, "terminate": 2, "server": 3, "hold": 3, "cut": 3}
    plan = []
    for _ in range(count):
        kind = draw.choices(list(kinds), list(kinds.values()))[0]
        at_s = draw.uniform(0.5, length_s)
        lasts_s = draw.choice((0.3, 1.0, 3.0, 5.0)) * draw.uniform(0.7, 1.3)
        if kind in ("kill", "terminate"):
            plan.append(Fault(at_s, kind, draw.choice(SERVICES)))
        elif kind == "pause":
            plan.append(Fault(at_s, kind, draw.choice((*SERVICES, "nats", "etcd")), lasts_s))
        elif kind == "server":
            plan.append(Fault(at_s, kind, draw.choice(SERVERS)))
        elif kind in ("hold", "cut"):
            plan.append(Fault(at_s, kind, " ".join(draw.choice(_LINKS)), lasts_s))
        else:
            lasts = lasts_s if kind == "point-stop" else 0.0
            plan.append(Fault(at_s, kind, draw.choice(POINTS), lasts, draw.choice((0, 0, 1, 5, 20, 100))))
    return sorted(plan, key=lambda fault: fault.at_s)


class Saboteur:
    """Does a plan's faults. `heal` takes everything back that still holds. `stalls`: for how long workers were held."""

    def __init__(self, stack: RunningStack, links: Links, points: Path, tell: Callable[[str], None]) -> None:
        self._stack = stack
        self._links = links
        self._points = points
        self._tell = tell
        self._held: dict[int, float] = {}  # process → loop time at which it goes on
        self._since: dict[int, tuple[str, float]] = {}  # process → name, and Unix epoch at which it was held
        self.stalls: list[Stall] = []
        self._stop_for: dict[str, float] = {}
        self._own: list[asyncio.Task[None]] = []
        self._turns: dict[str, asyncio.Lock] = {}

    async def run(self, plan: list[Fault]) -> None:
        """Do them at their times; returns when the last has begun."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        watching = asyncio.create_task(self._watch_points())
        try:
            for fault in plan:
                await asyncio.sleep(max(0.0, began + fault.at_s - loop.time()))
                self._tell(str(fault))
                self._own.append(asyncio.create_task(self._do(fault)))
            await asyncio.gather(*self._own)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self.heal()

    async def _do(self, fault: Fault) -> None:
        try:
            async with self._turns.setdefault(fault.target, asyncio.Lock()):
                await self._begin(fault)
        except StackError as error:  # it was down already, from another fault
            self._tell(f"         missed: {error}")

    async def _begin(self, fault: Fault) -> None:
        stack = self._stack
        match fault.kind:
            case "kill" | "server":
                if fault.target in stack.pids:
                    await stack.kill(fault.target)
            case "terminate":
                if fault.target in stack.pids:
                    await stack.restart(fault.target)
            case "pause":
                pid = stack.pids.get(fault.target)
                if pid is not None:
                    self._hold(fault.target, pid, fault.for_s)
            case "hold" | "cut":
                who, whom = fault.target.split()
                (self._links.hold if fault.kind == "hold" else self._links.cut)(who, whom)
                await asyncio.sleep(fault.for_s)
                self._links.heal(who, whom)
            case _:
                action = fault.kind.removeprefix("point-")
                self._stop_for[fault.target] = fault.for_s
                draft = self._points / f".{fault.target}"
                draft.write_text(f"{action} {fault.passes}")
                draft.rename(self._points / fault.target)

    def _hold(self, name: str, pid: int, for_s: float) -> None:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return
        self._is_held(name, pid, for_s)

    def _is_held(self, name: str, pid: int, for_s: float) -> None:
        until = asyncio.get_running_loop().time() + for_s
        self._held[pid] = max(until, self._held.get(pid, 0.0))
        self._since.setdefault(pid, (name, time.time()))

    async def _watch_points(self) -> None:
        """Processes that held themselves at a point go on after a while."""
        loop = asyncio.get_running_loop()
        seen: set[str] = set()
        while True:
            names = {pid: name for name, pid in self._stack.pids.items()}
            for taken in self._points.iterdir():
                name, _, pid = taken.name.rpartition(".")
                if taken.name in seen or not pid.isdigit():
                    continue
                seen.add(taken.name)
                who = names.get(int(pid), f"process {pid}")
                self._tell(f"         {who} was at {name}")
                if self._stop_for.get(name):
                    self._is_held(who, int(pid), self._stop_for[name])
            for pid in [p for p, until in self._held.items() if loop.time() >= until]:
                self._continue(pid)
            await asyncio.sleep(0.05)

    def _continue(self, pid: int) -> None:
        del self._held[pid]
        name, since = self._since.pop(pid)
        if name.startswith("worker"):
            self.stalls.append(Stall(name, since, time.time()))
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return

    async def heal(self) -> None:
        """Nothing is armed, held or cut any more, and everything runs."""
        loop = asyncio.get_running_loop()
        for file in self._points.iterdir():
            if not file.name.rpartition(".")[2].isdigit():
                file.unlink(missing_ok=True)
        self._links.heal_all()
        # A process may have taken its point a moment ago.
        until = loop.time() + 0.5
        while loop.time() < until or self._held:
            for pid in list(self._held):
                self._continue(pid)
            for name, pid in self._stack.pids.items():
                if _stopped(pid) and pid not in self._held:
                    self._is_held(name, pid, 0.0)
            await asyncio.sleep(0.05)
        for name in (*SERVERS, *SERVICES):
            await self._stack.ready(name, 120.0)


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
