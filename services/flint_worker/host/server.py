"""The host's loop: one thread, one selector, so that forking stays safe.

States: SERVING → SIGTERM: STOPPING (nothing is started any more, every worker is asked to end) → no worker is left →
ENDED. When the host is killed, its workers get SIGTERM from the kernel where it knows how, and its supervisor starts
another host, which begins with none.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from flint_contracts.gen.flint.hosts.v1 import hosts_pb2
from flint_ops.logging import get_logger
from flint_worker.host.frames import Frames, FrameTooLarge, framed
from flint_worker.host.workers import NoRoom, Workers

__all__ = ["HostServer", "listen_at"]

_MOST_CONNECTIONS: Final = 32
_MOST_OUT_BYTES: Final = 8 * 2**20
_MOST_ORDERS: Final = 1000
_LONGEST_WAIT_S: Final = 5.0
_READ_BYTES: Final = 65_536

_log = get_logger("flint_worker.host")


def listen_at(path: Path) -> socket.socket:
    """A socket that only this user can reach. What an earlier host left at the path is replaced.

    It is bound by its name within its folder: paths of sockets may have 107 bytes only.
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = Path.cwd()
    mask = os.umask(0o177)
    try:
        os.chdir(path.parent)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name)  # noqa: PTH108 - by its name within the folder
        server.bind(path.name)
        server.listen(_MOST_CONNECTIONS)
    except BaseException:
        server.close()
        raise
    finally:
        os.umask(mask)
        os.chdir(before)
    server.setblocking(False)
    return server


class _Connection:
    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.frames = Frames()
        self.out = bytearray()


class HostServer:
    """Serves registries until it is told to stop."""

    def __init__(self, server: socket.socket, make_workers: Callable[[Callable[[], None]], Workers]) -> None:
        self._server = server
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)
        self._connections: dict[int, _Connection] = {}
        self._workers = make_workers(self._give_up)
        self._stopping = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT was heard and the last worker has ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # it only has to wake the selector
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        try:
            while not (self._stopping and not self._workers.running):
                self._turn()
        finally:
            signal.set_wakeup_fd(-1)
            for connection in list(self._connections.values()):
                self._drop(connection)
            self._selector.close()
            self._server.close()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _turn(self) -> None:
        kill_s = self._workers.next_kill_s()
        for key, events in self._selector.select(_LONGEST_WAIT_S if kill_s is None else min(kill_s, _LONGEST_WAIT_S)):
            if key.fileobj is self._server:
                self._accept()
            elif key.fileobj is self._woken:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(_READ_BYTES)
            else:
                self._attend(self._connections.get(key.fd), events)
        for worker in self._workers.reap():
            message = hosts_pb2.HostMessage(ended=worker)
            for connection in list(self._connections.values()):
                self._send(connection, message)
        if self._stopping:
            self._workers.end()
        self._workers.kill_overdue()

    # -- connections --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            link, _ = self._server.accept()
        except OSError as error:
            _log.warning("not_accepted", error=str(error))
            return
        if len(self._connections) >= _MOST_CONNECTIONS or not _same_user(link):
            link.close()
            return
        link.setblocking(False)
        self._connections[link.fileno()] = _Connection(link)
        self._selector.register(link, selectors.EVENT_READ)

    def _attend(self, connection: _Connection | None, events: int) -> None:
        if connection is None:
            return
        if events & selectors.EVENT_WRITE:
            self._flush(connection)
        if not events & selectors.EVENT_READ:
            return
        try:
            data = connection.link.recv(_READ_BYTES)
            requests = connection.frames.feed(data)
        except BlockingIOError:
            return
        except (OSError, FrameTooLarge) as error:
            _log.warning("connection_dropped", error=str(error))
            data = b""
        if not data:
            self._drop(connection)
            return
        for request in requests:
            self._serve(connection, request)

    def _serve(self, connection: _Connection, data: bytes) -> None:
        try:
            request = hosts_pb2.HostRequest.FromString(data)
        except DecodeError:
            _log.warning("request_unreadable", size=len(data))
            self._drop(connection)
            return
        response = hosts_pb2.HostResponse(id=request.id)
        kind = request.WhichOneof("command")
        if kind == "start":
            self._start(request.start, response)
        elif kind == "list":
            response.workers.extend(self._workers.listed())
        elif kind == "end":
            self._workers.end(set(request.end.worker_ids))
        else:
            response.refusal = "the request names no command"
        response.room = 0 if self._stopping else self._workers.room
        self._send(connection, hosts_pb2.HostMessage(response=response))

    def _start(self, start: hosts_pb2.StartWorkers, response: hosts_pb2.HostResponse) -> None:
        if self._stopping:
            response.refusal = "the host is stopping"
            return
        if len(start.orders) > _MOST_ORDERS:
            response.refusal = f"more than {_MOST_ORDERS} workers in one request"
            return
        for order in start.orders:
            try:
                response.workers.append(self._workers.start(order))
            except NoRoom as error:
                response.refusal = str(error)
                return
            except OSError as error:
                response.refusal = f"a worker cannot be started: {error.strerror}"
                return

    def _send(self, connection: _Connection, message: hosts_pb2.HostMessage) -> None:
        if connection.link.fileno() not in self._connections:
            return
        connection.out += framed(message.SerializeToString())
        if len(connection.out) > _MOST_OUT_BYTES:
            _log.warning("connection_dropped", error="it reads too slowly")
            self._drop(connection)
            return
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            while connection.out:
                del connection.out[: connection.link.send(connection.out)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        self._selector.modify(connection.link, events)

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.link.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.link)
        connection.link.close()

    def _give_up(self) -> None:
        """In a child: its copies of the host's files."""
        for connection in self._connections.values():
            connection.link.close()
        self._selector.close()
        for link in (self._server, self._woken, self._wake):
            link.close()


def _same_user(link: socket.socket) -> bool:
    if sys.platform != "linux":
        return True  # the folder's permissions alone
    _, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user in (os.getuid(), 0)
