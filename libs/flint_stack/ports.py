"""The ports of one stack: fixed offsets from a base, or free ones; and who is in the way when one is taken."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil

from flint_stack.errors import PortTaken

__all__ = ["DEFAULT_PORT_BASE", "Counts", "Ports", "check_free"]

DEFAULT_PORT_BASE = 7470
_HOST = "127.0.0.1"
_FREE_RANGE = range(12_000, 32_000)  # below the range from which systems take outgoing ports
_BLOCK = 500
_chosen: set[int] = set()  # by this process: what it chose a moment ago may not be bound yet
_BEYOND = 100  # offset of whatever the plan of fixed offsets has no place for


@dataclass(frozen=True, slots=True)
class Counts:
    """How many processes of each kind."""

    schedulers: int = 2
    registries: int = 2
    workers: int = 2


@dataclass(frozen=True, slots=True)
class Ports:
    """One port each, all on 127.0.0.1."""

    gateway: int
    schedulers: tuple[int, ...]
    registries: tuple[int, ...]
    postgres: int
    nats: int
    nats_monitor: int
    etcd: int
    etcd_peer: int
    gateway_ops: int
    scheduler_ops: tuple[int, ...]
    registry_ops: tuple[int, ...]
    worker_ops: tuple[int, ...]

    @classmethod
    def based(cls, base: int, counts: Counts) -> Ports:
        """Fixed offsets: gateway 0, schedulers 1 and 2, registries 3 and 4, servers 5 to 9, operator's ports 10 on."""
        beyond = iter(range(base + _BEYOND, base + _BEYOND + 10_000))
        return cls(
            gateway=base,
            schedulers=_take((base + 1, base + 2), counts.schedulers, beyond),
            registries=_take((base + 3, base + 4), counts.registries, beyond),
            postgres=base + 5,
            nats=base + 6,
            etcd=base + 7,
            etcd_peer=base + 8,
            nats_monitor=base + 9,
            gateway_ops=base + 10,
            scheduler_ops=_take((base + 11, base + 12), counts.schedulers, beyond),
            registry_ops=_take((base + 13, base + 14), counts.registries, beyond),
            worker_ops=_take(tuple(range(base + 15, base + 30)), counts.workers, beyond),
        )

    @classmethod
    def free(cls, counts: Counts) -> Ports:
        """Ports that nobody listens on now, and that this process has not chosen before.

        Stacks of several processes may choose at the same moment and rarely collide.
        """
        found = _free_ports()
        many = {"schedulers": counts.schedulers, "registries": counts.registries, "workers": counts.workers}
        groups = {name: tuple(next(found) for _ in range(count)) for name, count in many.items()}
        return cls(
            gateway=next(found),
            schedulers=groups["schedulers"],
            registries=groups["registries"],
            postgres=next(found),
            nats=next(found),
            nats_monitor=next(found),
            etcd=next(found),
            etcd_peer=next(found),
            gateway_ops=next(found),
            scheduler_ops=tuple(next(found) for _ in range(counts.schedulers)),
            registry_ops=tuple(next(found) for _ in range(counts.registries)),
            worker_ops=groups["workers"],
        )


def check_free(wanted: Iterable[tuple[str, int]]) -> None:
    """Raises PortTaken naming every taken port, what it is for and, where the system tells, who has it."""
    taken = [(name, port) for name, port in wanted if not _is_free(port)]
    if not taken:
        return
    lines = [f"  {port} ({name}){_blame(port)}" for name, port in taken]
    raise PortTaken(
        "These ports are in use:\n" + "\n".join(lines) + "\nEnd what uses them, or choose others with --port-base "
        "(0 takes free ones)."
    )


def _take(places: tuple[int, ...], count: int, beyond: Iterator[int]) -> tuple[int, ...]:
    return tuple(places[index] if index < len(places) else next(beyond) for index in range(count))


def _free_ports() -> Iterator[int]:
    choose = random.SystemRandom()  # not the shared generator: tests seed that one alike in every process
    # Between the look and the server's bind another process may look too: each begins with a block of its own.
    if len(_chosen) > len(_FREE_RANGE) // 2:
        _chosen.clear()  # long since bound, or given up
    blocks = len(_FREE_RANGE) // _BLOCK
    own = _FREE_RANGE[os.getpid() % blocks * _BLOCK :][:_BLOCK]
    for ports in (own, _FREE_RANGE):
        untried = [port for port in ports if port not in _chosen]
        choose.shuffle(untried)
        for port in untried:
            if port not in _chosen and _is_free(port):
                _chosen.add(port)
                yield port
    raise PortTaken("No free port was found.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: a port whose last connections are still fading counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _blame(port: int) -> str:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return ""
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            if connection.pid is None:
                return ": used by a process of another user"
            try:
                return f": used by {psutil.Process(connection.pid).name()}, process {connection.pid}"
            except psutil.NoSuchProcess:
                return ""
    return ""
