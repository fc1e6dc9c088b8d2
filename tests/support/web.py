"""Little servers of the tests' own: HTTP/1.1, HTTP/2 over TLS, servers that misbehave, and a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
import uvicorn
from hypercorn.asyncio import serve
from hypercorn.config import Config

__all__ = ["Proxy", "Trust", "http2_server", "proxy_server", "raw_server", "web_server"]


@asynccontextmanager
async def web_server(app: Any, **options: Any) -> AsyncIterator[str]:
    """Serves an ASGI application over HTTP/1.1 on a free port; gives its address."""
    config = uvicorn.Config(
        app, port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1, timeout_keep_alive=60, **options
    )
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    serving = asyncio.create_task(server.serve(sockets))
    scheme = "https" if config.is_ssl else "http"
    try:
        yield f"{scheme}://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


class Trust:
    """An authority of the test's own; files live in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self._folder = folder
        self.ca_file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca_file)

    def server(self, *names: str) -> Path:
        """Certificate and key of a server, in one file."""
        path = self._folder / f"{names[0]}.pem"
        self._authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(path)
        return path


@asynccontextmanager
async def http2_server(app: Any, certificate: Path) -> AsyncIterator[str]:
    """Serves an ASGI application over HTTP/2 and TLS on a free port; gives its address (`https://127.0.0.1:…`)."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.certfile = config.keyfile = str(certificate)
    config.alpn_protocols = ["h2"]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 0.5
    config.shutdown_timeout = 1
    sockets = config.create_sockets()
    config.create_sockets = lambda: sockets  # type: ignore[method-assign]
    sockets.secure_sockets[0].listen()  # so that whoever comes before it serves waits
    port = sockets.secure_sockets[0].getsockname()[1]
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
    try:
        yield f"https://127.0.0.1:{port}"
    finally:
        stop.set()
        await serving


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server whose every byte the test writes. `handler` gets each connection; it ends with the block."""
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handler(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Proxy:
    """An HTTP proxy that remembers what was asked of it."""

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and target of each request, CONNECT among them."""
    credentials: list[str] = field(default_factory=list)


@asynccontextmanager
async def proxy_server(refuse: bool = False) -> AsyncIterator[Proxy]:
    """A proxy for plain HTTP and, by CONNECT, for all else. `refuse`: it answers 407 to everybody."""
    proxy = Proxy()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
            writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *headers = head.decode().split("\r\n")
        method, target, _ = line.split(" ")
        proxy.requests.append((method, target))
        proxy.credentials += [h.partition(": ")[2] for h in headers if h.lower().startswith("proxy-authorization")]
        if refuse:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            upstream = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            host, _, path = target.removeprefix("http://").partition("/")
            name, _, port = host.partition(":")
            upstream = await asyncio.open_connection(name, int(port or 80))
            kept = [h for h in headers if h and not h.lower().startswith("proxy-")]
            upstream[1].write("\r\n".join([f"{method} /{path} HTTP/1.1", *kept, "", ""]).encode())
        await asyncio.gather(pump(reader, upstream[1]), pump(upstream[0], writer))

    async with raw_server(handle) as address:
        proxy.url = f"http://{address}"
        yield proxy


@contextlib.contextmanager
def trust() -> Any:
    """An authority for one test module."""
    with tempfile.TemporaryDirectory() as folder:
        yield Trust(Path(folder))
