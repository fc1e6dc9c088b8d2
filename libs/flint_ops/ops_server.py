"""The operator's port: /metrics, /livez and /readyz over plain HTTP.

States: STARTED (serving in a thread of its own, so that it answers while the event loop is busy) → CLOSED.
A thread that dies takes only this port with it: /livez no longer answers, and a supervisor restarts the process.
/livez is about the event loop: it fails when the loop has not ticked for `LIVE_WITHIN_S`. /readyz is about the named
checks: it fails with their reasons.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import orjson
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["LIVE_WITHIN_S", "OpsServer", "Readiness", "split_address"]

LIVE_WITHIN_S = 15.0
"""An event loop that has not ticked for this long is not alive."""

Probe = Callable[[], str | None]


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` as (host, port). Raises ValueError with the address in its message."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"«{address}» is not of the form host:port")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - «:port» means every interface, as everywhere


class Readiness:
    """Named checks, all of which must hold before the process is ready. Safe to use from any thread.

    A check is either a state that its owner sets, or a probe that is asked (it must be quick and thread-safe, and
    answers None when all is well, else the reason).
    """

    def __init__(self) -> None:
        self._states: dict[str, str | None] = {}
        self._probes: dict[str, Probe] = {}
        self._tick = time.monotonic()

    def require(self, name: str, probe: Probe | None = None) -> None:
        """Adds a check. Without a probe it fails («starting») until `set` says otherwise."""
        if probe is None:
            self._states.setdefault(name, "starting")
        else:
            self._probes[name] = probe

    def set(self, name: str, problem: str | None = None) -> None:
        """The state of a check: None when all is well, else the reason."""
        self._states[name] = problem

    def failing(self) -> dict[str, str]:
        """The checks that do not hold, with their reasons."""
        answers = dict(self._states)
        answers.update((name, probe()) for name, probe in list(self._probes.items()))
        return {name: reason for name, reason in answers.items() if reason is not None}

    def tick(self) -> None:
        """Called by the event loop every second or so."""
        self._tick = time.monotonic()

    def alive(self) -> bool:
        """Whether the event loop ticked lately."""
        return time.monotonic() - self._tick < LIVE_WITHIN_S


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # a client that says nothing must not hold the one thread

    def log_message(self, format: str, *args: Any) -> None:
        """Requests of probes are not worth a line."""


class _Server6(WSGIServer):
    address_family = socket.AF_INET6


class OpsServer:
    """Serves the operator's port from `start` to `close`. Port 0 takes a free one; see `address`."""

    def __init__(self, listen: str, readiness: Readiness, registry: CollectorRegistry = REGISTRY) -> None:
        host, port = split_address(listen)
        self._readiness = readiness
        self._registry = registry
        server_class = _Server6 if ":" in host else WSGIServer
        self._server = make_server(host, port, self._answer, server_class=server_class, handler_class=_QuietHandler)
        self._server.timeout = 0  # it is asked for a request only when one is there
        self._closing, self._close = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="ops-server", daemon=True)

    @property
    def address(self) -> str:
        """`host:port` as bound."""
        host, port = self._server.server_address[:2]
        name = host.decode() if isinstance(host, bytes | bytearray) else host
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def close(self) -> None:
        """Stops serving and waits for the thread (at most some seconds)."""
        self._close.close()
        if self._thread.is_alive():
            self._thread.join(timeout=15)
        self._closing.close()
        self._server.server_close()

    def _serve(self) -> None:
        """Sleeps until somebody asks or it is closed; `serve_forever` would look twice a second."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            selector.register(self._closing, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._closing in ready:
                    return
                self._server.handle_request()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        kind = "application/json"
        status = "200 OK"
        if path == "/metrics":
            kind, body = CONTENT_TYPE_LATEST, generate_latest(self._registry)
        elif path == "/livez":
            alive = self._readiness.alive()
            body = orjson.dumps({"alive": alive})
            status = status if alive else "503 Service Unavailable"
        elif path == "/readyz":
            failing = self._readiness.failing()
            body = orjson.dumps({"ready": not failing, "failing": failing})
            status = status if not failing else "503 Service Unavailable"
        else:
            status, body = "404 Not Found", b'{"paths":["/metrics","/livez","/readyz"]}'
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]
