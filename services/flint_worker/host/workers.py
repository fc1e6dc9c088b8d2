"""The workers of a host: what runs, what was asked to end, what has ended.

States of a worker: running → (asked: SIGTERM; SIGKILL after its grace) → ended. It has ended once its process has, and
everything that it had started was killed: nothing is told before, because others take its work over at that moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flint_contracts.gen.flint.hosts.v1 import hosts_pb2
from flint_ops.clock import now_ms
from flint_ops.logging import get_logger
from flint_worker.host.spawn import spawn_worker, strays

__all__ = ["NoRoom", "Workers"]

_ENDED_KEPT: Final = 1000
_SWEEP_S: Final = 0.2
_SWEEP_PAUSE_S: Final = 0.002

_log = get_logger("flint_worker.host")


class NoRoom(Exception):
    """The host has as many workers as it may have."""


@dataclass(slots=True)
class _Running:
    shown: hosts_pb2.HostedWorker
    kill_at: float | None = None
    """When it is killed, on the monotonic clock; None while nobody asked it to end."""


class Workers:
    """Up to `most` workers at a time. Used from one thread."""

    def __init__(
        self, arguments: Sequence[str], logs: Path, most: int, grace_s: float, close: Callable[[], None]
    ) -> None:
        self._arguments = tuple(arguments)
        self._logs = logs
        self._most = most
        self._grace_s = grace_s
        self._close = close
        self._running: dict[int, _Running] = {}
        self._ended: OrderedDict[str, hosts_pb2.HostedWorker] = OrderedDict()

    @property
    def room(self) -> int:
        """How many more may be started."""
        return max(0, self._most - len(self._running))

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    def start(self, order: hosts_pb2.WorkerOrder) -> hosts_pb2.HostedWorker:
        """Starts a worker, or finds the one with this id. Raises NoRoom, OSError."""
        for known in self._running.values():
            if known.shown.worker_id == order.worker_id:
                return known.shown
        if order.worker_id in self._ended:
            return self._ended[order.worker_id]
        if not self.room:
            raise NoRoom(f"{len(self._running)} workers run here; fleet.local_workers allows no more")
        settings = {
            "worker.id": order.worker_id,
            "worker.pool": order.pool,
            "worker.region": order.region,
            "worker.ops_listen": "127.0.0.1:0",
            **({"worker.slots": str(order.slots)} if order.slots else {}),
        }
        arguments = [*self._arguments, *(f"--set={key}={value}" for key, value in settings.items())]
        pid = spawn_worker(arguments, self._logs / f"{order.worker_id}.log", self._close)
        shown = hosts_pb2.HostedWorker(worker_id=order.worker_id, pool=order.pool, region=order.region, pid=pid)
        shown.start_time.FromMilliseconds(now_ms())
        self._running[pid] = _Running(shown)
        _log.info("worker_started", worker=order.worker_id, pool=order.pool, worker_pid=pid)
        return shown

    def listed(self) -> list[hosts_pb2.HostedWorker]:
        """All that run, and the latest that ended."""
        return [*(running.shown for running in self._running.values()), *self._ended.values()]

    def end(self, worker_ids: set[str] | None = None) -> None:
        """Asks these (all, without names) to end."""
        for pid, running in self._running.items():
            if running.kill_at is None and (worker_ids is None or running.shown.worker_id in worker_ids):
                running.kill_at = time.monotonic() + self._grace_s
                running.shown.asked = True
                _signal(pid, signal.SIGTERM)
                _signal(pid, signal.SIGCONT)

    def next_kill_s(self) -> float | None:
        """Seconds until somebody's grace is over; None when nobody was asked to end."""
        times = [running.kill_at for running in self._running.values() if running.kill_at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def kill_overdue(self) -> None:
        """Kills those whose grace is over."""
        now = time.monotonic()
        for pid, running in self._running.items():
            if running.kill_at is not None and running.kill_at <= now:
                _log.warning("worker_killed", worker=running.shown.worker_id, why="it did not end in time")
                running.kill_at = now + self._grace_s
                _signal_group(pid)

    def reap(self) -> list[hosts_pb2.HostedWorker]:
        """Workers that ended since the last call, once nothing of them is left."""
        ended = []
        while True:
            try:
                # Looked at before it is reaped: while it is a zombie its number, the group's too, is nobody else's.
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if seen is None:
                break
            running = self._running.pop(seen.si_pid, None)
            if running is not None:
                _signal_group(seen.si_pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(seen.si_pid, 0)
            if running is None:
                continue
            code = seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status
            running.shown.exit_code = code
            ended.append(running.shown)
        if ended:
            self._sweep()
            for shown in ended:
                shown.end_time.FromMilliseconds(now_ms())
                self._ended[shown.worker_id] = shown
                if len(self._ended) > _ENDED_KEPT:
                    self._ended.popitem(last=False)
                _log.info("worker_ended", worker=shown.worker_id, code=shown.exit_code, asked=shown.asked)
        return ended

    def _sweep(self) -> None:
        """Kills what dead workers left behind: whatever is our child and no worker."""
        until = time.monotonic() + _SWEEP_S
        while (left := strays(set(self._running))) and time.monotonic() < until:
            for pid in left:
                _signal(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(_SWEEP_PAUSE_S)
        if left:
            _log.warning("processes_left", processes=left)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _signal_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
