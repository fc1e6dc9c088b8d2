"""Links between named processes that a test can cut: one TCP relay for each pair of a service and what it talks to.

    links = Links(); settings = links.settings_of(ports, "worker-1", dsn)
    links.hold("worker-1", "nats"); links.cut("gateway", "scheduler-1"); links.heal()

A link is OPEN, HELD (what is sent waits, as on a network that drops packets: nobody is told) or CUT (connections break
and new ones are refused). Relaying begins when the settings are asked for, within the running event loop.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from flint_stack.ports import Ports

__all__ = ["Links"]

_CHUNK = 2**16


class _Link:
    """One relay."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.refusing = False
        self._connections: set[asyncio.Task[None]] = set()
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accepted, sock=self._socket)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._socket.close()
        self.break_connections()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def break_connections(self) -> None:
        for task in self._connections:
            task.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if not self.refusing:
                await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # a broken connection is what this is about; whoever is cut sees it close
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.flowing.wait()
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            pumps = [
                asyncio.ensure_future(self._pump(reader, far_writer)),
                asyncio.ensure_future(self._pump(far_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self.flowing.wait()
            writer.write(data)
            await writer.drain()


class Links:
    """All links of one stack, by (who, to whom). Used from one event loop."""

    def __init__(self) -> None:
        self._links: dict[tuple[str, str], _Link] = {}
        self._opening: list[asyncio.Task[None]] = []

    def settings_of(self, ports: Ports, name: str, dsn: str) -> dict[str, Any]:
        """Settings for one process that send whatever it says to others through its links. `dsn`: the database's."""
        role = name.rstrip("-0123456789")
        settings: dict[str, Any] = {"nats": {"urls": [f"nats://{self._to(name, 'nats', ports.nats)}"]}}
        registries = {f"registry-{n + 1}": port for n, port in enumerate(ports.registries)}
        if role in ("scheduler", "registry"):
            settings["etcd"] = {"endpoints": [self._to(name, "etcd", ports.etcd)]}
            place = self._to(name, "postgres", ports.postgres)
            settings["postgres"] = {"dsn": dsn.replace(f"127.0.0.1:{ports.postgres}", place)}
        if role == "gateway":
            schedulers = {f"scheduler-{n + 1}": port for n, port in enumerate(ports.schedulers)}
            settings["gateway"] = {
                "schedulers": [self._to(name, other, port) for other, port in schedulers.items()],
                "registries": [self._to(name, other, port) for other, port in registries.items()],
            }
        if role == "worker":
            settings["worker"] = {"registries": [self._to(name, other, port) for other, port in registries.items()]}
        return settings

    def _to(self, name: str, other: str, port: int) -> str:
        link = self._links.get((name, other))
        if link is None:
            link = self._links[name, other] = _Link(port)
            self._opening.append(asyncio.ensure_future(link.open()))
        return link.address

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Who talks to whom."""
        return sorted(self._links)

    async def close(self) -> None:
        """Break everything."""
        await asyncio.gather(*self._opening)
        await asyncio.gather(*(link.close() for link in self._links.values()))

    def hold(self, who: str, whom: str) -> None:
        """Nothing arrives any more, in either direction; nobody is told."""
        self._links[who, whom].flowing.clear()

    def cut(self, who: str, whom: str) -> None:
        """Connections break, new ones are refused."""
        link = self._links[who, whom]
        link.refusing = True
        link.break_connections()

    def heal(self, who: str, whom: str) -> None:
        """As before."""
        link = self._links[who, whom]
        link.refusing = False
        link.flowing.set()

    def heal_all(self) -> None:
        """As before, everywhere."""
        for who, whom in self._links:
            self.heal(who, whom)
