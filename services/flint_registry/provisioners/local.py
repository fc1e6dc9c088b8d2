"""Workers as processes of this machine, through a worker host (`flint_worker.host`) at a Unix socket.

States of the link: **closed** → a call or the watch opens it: **open** → it breaks: its calls fail, **closed**. The
host outlives registries, so whoever leads next lists what runs; when the host itself dies its workers drain and end,
and the host that follows it begins with none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from flint_contracts.gen.flint.hosts.v1 import hosts_pb2
from flint_ops.logging import get_logger
from flint_registry.provisioners.base import Order, Provisioned, ProvisionerRefused, ProvisionerUnavailable

__all__ = ["LocalProvisioner"]

_TIMEOUT_S: Final = 10.0
_RETRY_S: Final = 0.5
_LENGTH: Final = 4
_MOST_BYTES: Final = 4 * 2**20
_MOST_ENDS: Final = 10_000
_PER_REQUEST: Final = 1000
_PATH_LIMIT: Final = 100

_log = get_logger("flint_registry.local")


class _Link:
    """One connection to the host."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[hosts_pb2.HostResponse]] = {}
        self._ids = count(1)
        self.ends: asyncio.Queue[hosts_pb2.HostedWorker | None] = asyncio.Queue(_MOST_ENDS)
        self.broken = False
        self._task = asyncio.get_running_loop().create_task(self._read(), name="local-provisioner")

    async def ask(self, request: hosts_pb2.HostRequest) -> hosts_pb2.HostResponse:
        """One exchange. Raises ProvisionerUnavailable."""
        request.id = next(self._ids)
        answer = self._waiting[request.id] = asyncio.get_running_loop().create_future()
        data = request.SerializeToString()
        try:
            if self.broken:
                raise ProvisionerUnavailable("the worker host went away")
            async with asyncio.timeout(_TIMEOUT_S):
                self._writer.write(len(data).to_bytes(_LENGTH, "big") + data)
                await self._writer.drain()
                response: hosts_pb2.HostResponse = await answer
                return response
        except TimeoutError:
            raise ProvisionerUnavailable(f"the worker host did not answer within {_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise ProvisionerUnavailable(f"the worker host went away: {error}") from error
        finally:
            self._waiting.pop(request.id, None)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _read(self) -> None:
        try:
            while True:
                size = int.from_bytes(await self._reader.readexactly(_LENGTH), "big")
                if size > _MOST_BYTES:
                    _log.error("host_says_too_much", size=size)
                    return
                message = hosts_pb2.HostMessage.FromString(await self._reader.readexactly(size))
                if message.WhichOneof("content") == "ended":
                    self.ends.put_nowait(message.ended)
                elif (waiting := self._waiting.get(message.response.id)) is not None and not waiting.done():
                    waiting.set_result(message.response)
        except (asyncio.IncompleteReadError, OSError):
            pass
        except (DecodeError, asyncio.QueueFull) as error:
            _log.error("host_link_dropped", error=repr(error))
        finally:
            self.broken = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ProvisionerUnavailable("the worker host went away"))
            with contextlib.suppress(asyncio.QueueFull):
                self.ends.put_nowait(None)
            self._writer.close()


class LocalProvisioner:
    """Used from one event loop."""

    name = "local"

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._link: _Link | None = None
        self._opening = asyncio.Lock()

    async def start(self, orders: Sequence[Order]) -> None:
        """See Provisioner."""
        for at in range(0, len(orders), _PER_REQUEST):
            wanted = [
                hosts_pb2.WorkerOrder(worker_id=o.worker_id, pool=o.pool, region=o.region, slots=o.slots)
                for o in orders[at : at + _PER_REQUEST]
            ]
            await self._ask(hosts_pb2.HostRequest(start=hosts_pb2.StartWorkers(orders=wanted)))

    async def list(self) -> list[Provisioned]:
        """See Provisioner."""
        response = await self._ask(hosts_pb2.HostRequest(list=hosts_pb2.ListWorkers()))
        return [_provisioned(worker) for worker in response.workers]

    async def end(self, worker_ids: Iterable[str]) -> None:
        """See Provisioner. Processes that ended leave nothing to remove."""
        wanted = list(worker_ids)
        for at in range(0, len(wanted), _PER_REQUEST):
            command = hosts_pb2.EndWorkers(worker_ids=wanted[at : at + _PER_REQUEST])
            await self._ask(hosts_pb2.HostRequest(end=command))

    async def watch(self) -> AsyncGenerator[Provisioned, None]:
        """See Provisioner. Each new link begins with all that the host remembers."""
        told = ""
        while True:
            try:
                link = await self._open()
                listed = await link.ask(hosts_pb2.HostRequest(list=hosts_pb2.ListWorkers()))
                told = ""
                for worker in listed.workers:
                    if worker.HasField("end_time"):
                        yield _provisioned(worker)
                while (ended := await link.ends.get()) is not None:
                    yield _provisioned(ended)
            except ProvisionerUnavailable as error:
                if str(error) != told:
                    told = str(error)
                    _log.warning("host_not_followed", error=told)
            await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        """See Provisioner."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _ask(self, request: hosts_pb2.HostRequest) -> hosts_pb2.HostResponse:
        response = await (await self._open()).ask(request)
        if response.refusal:
            raise ProvisionerRefused(response.refusal)
        return response

    async def _open(self) -> _Link:
        async with self._opening:
            if self._link is None or self._link.broken:
                try:
                    async with asyncio.timeout(_TIMEOUT_S), _reachable(self._socket) as path:
                        self._link = _Link(*await asyncio.open_unix_connection(path))
                except (OSError, TimeoutError) as error:
                    raise ProvisionerUnavailable(f"the worker host is not reachable: {error}") from error
            return self._link


@contextlib.asynccontextmanager
async def _reachable(path: Path) -> AsyncIterator[str]:
    """A path of the socket that is short enough for the system (107 bytes): by its folder's descriptor if need be."""
    if len(os.fsencode(path)) <= _PATH_LIMIT or sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _provisioned(worker: hosts_pb2.HostedWorker) -> Provisioned:
    ended = worker.HasField("end_time")
    code = worker.exit_code
    how = f"exit code {code}" if code >= 0 else f"signal {-code}"
    return Provisioned(
        worker_id=worker.worker_id,
        pool=worker.pool,
        region=worker.region,
        started_ms=worker.start_time.ToMilliseconds(),
        ended_ms=worker.end_time.ToMilliseconds() if ended else 0,
        failed=ended and code != 0,
        detail=how if ended else "",
    )
