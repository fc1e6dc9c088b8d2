"""`python -m flint_stack.forker SOCKET PADDING`: starts services as forks of one process that has loaded libraries.

A service that starts as a program of its own spends about a second of CPU on loading the same libraries as six others.
Here they are loaded once, while the servers start. Forking is safe while this process has one thread and gRPC was
imported but never used; that is looked at before every fork, and else the supervisor starts a program of its own. Only
libraries are loaded: a service's own rooms are imported in its process, so nothing that one of them sets up when it is
imported (metrics, salts) is shared with another.

States: LOADING → SERVING (forks, tells who ended) → its socket is closed: ENDED. A service leads a session and process
group of its own, and gets its stop signal from the kernel when this process dies in whatever way, which gets SIGTERM
itself when the supervisor dies. Its command line and `sys.argv` are those of `python -m MODULE ARGUMENT ...`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

__all__ = ["COMMAND_BYTES", "MESSAGE_BYTES", "main"]

COMMAND_BYTES: Final = 1024
"""Room for a service's command line, in bytes: a longer one is shown cut off."""
MESSAGE_BYTES: Final = 65_536
"""Most bytes of one message."""

_PR_SET_PDEATHSIG: Final = 1
_SHARED: Final = (
    # Flint's libraries, and with them most of what others wrote.
    "flint_ops.lifecycle",
    "flint_rpc.server",
    "flint_rpc.upstream",
    "flint_bus",
    "flint_bus.consumer",
    "flint_bus.payloads",
    "flint_coord",
    "flint_core.cloud_events",
    "flint_core.definition",
    "flint_core.machine",
    "flint_core.program",
    "flint_core.schedule",
    "flint_jq",
    "flint_contracts.schedules",
    "flint_store.accept",
    "flint_store.engine",
    "flint_store.fleet",
    "flint_store.fold",
    "flint_store.migrate",
    "flint_store.ownership",
    "flint_store.retention",
    "flint_store.runs_read",
    "flint_store.schedules",
    # What several services, or several processes of one, load beside them.
    "aiosmtplib",
    "click",
    "grpc_health.v1.health_pb2_grpc",
    "grpc_reflection.v1alpha.reflection_pb2_grpc",
    "h2.connection",
    "httpx",
    "psutil",
    "psycopg",
    "rich.console",
    "ruamel.yaml",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.ext.asyncio",
    "uritemplate",
    "uvloop",
)
_DEFAULT_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)


def main() -> int:
    """The command. Ends when the supervisor closes the socket."""
    link = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to act on
    gc.disable()  # nothing of what is loaded is garbage; a look through all of it costs as much as a large library
    for name in _SHARED:
        import_module(name)
    gc.collect()
    gc.freeze()  # the collector of a fork never copies it
    gc.enable()
    _Server(link).run()
    return 0


class _Server:
    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._woken, self._wake = socket.socketpair()
        self._children: set[int] = set()
        for end in (self._link, self._woken, self._wake):
            end.setblocking(False)

    def run(self) -> None:
        """Until the other side closes the socket."""
        selector = selectors.DefaultSelector()
        selector.register(self._link, selectors.EVENT_READ)
        selector.register(self._woken, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # it only has to wake the selector
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        while True:
            for key, _ in selector.select():
                if key.fileobj is self._link:
                    if not self._serve(selector):
                        return
                else:
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(4096)
            self._reap()

    def _serve(self, selector: selectors.BaseSelector) -> bool:
        """One order; False when the supervisor is gone."""
        try:
            data, files, _, _ = socket.recv_fds(self._link, MESSAGE_BYTES, 1)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        try:
            self._tell(self._fork(json.loads(data), files[0], selector))
        finally:
            for file in files:
                os.close(file)
        return True

    def _fork(self, order: dict[str, Any], log: int, selector: selectors.BaseSelector) -> dict[str, Any]:
        if _threads() != 1:
            return {"id": order["id"], "refused": "a library has started a thread"}
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            return {"id": order["id"], "refused": error.strerror or str(error)}
        if pid == 0:
            selector.close()
            for end in (self._link, self._woken, self._wake):
                end.close()
            _become(parent, str(order["module"]), list(order["arguments"]), int(order["signal"]), log)
        self._children.add(pid)
        return {"id": order["id"], "pid": pid}

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._children.discard(pid)
                self._tell({"ended": pid, "code": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: dict[str, Any]) -> None:
        self._link.setblocking(True)  # the supervisor always reads
        try:
            self._link.send(json.dumps(message).encode())
        except OSError:
            return  # it is gone, which the next look at the socket tells
        finally:
            self._link.setblocking(False)


def _become(parent: int, module: str, arguments: Sequence[str], stop_signal: int, log: int) -> NoReturn:
    """In the fork: becomes the service and never returns."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, stop_signal, 0, 0, 0)
        if os.getppid() != parent:  # it died before the signal was armed
            os._exit(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for file, place in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(file, place)
        os.closerange(3, max(nothing, log) + 1)
        command = [sys.executable, "-m", module, *arguments]
        sys.argv = [module, *arguments]
        sys.orig_argv = command
        _show_command(command)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ending:
        code = _code_of(ending)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _code_of(ending: SystemExit) -> int:
    if ending.code is None or isinstance(ending.code, int):
        return ending.code or 0
    sys.stderr.write(f"{ending.code}\n")
    return 1


def _show_command(command: Sequence[str]) -> None:
    """What `ps` shows: this process's arguments are overwritten in place, which the padding made long enough for."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    text = b"\0".join(os.fsencode(word) for word in command)[: end - begin - 1]
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, text, len(text))


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - one call before every fork


if __name__ == "__main__":
    sys.exit(main())
