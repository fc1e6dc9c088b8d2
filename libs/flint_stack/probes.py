"""Readiness probes: each asks once, within a deadline, and raises ProbeFailed unless the answer is the wanted one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path

from flint_stack.errors import ProbeFailed

__all__ = ["http_get", "http_ready", "socket_ready"]

_MAX_BODY = 1 << 20


async def http_get(address: str, path: str, *, timeout_s: float = 2.0) -> tuple[int, bytes]:
    """Status and body (1 MiB at most) of `GET http://address/path`. Raises ProbeFailed when there is no HTTP answer."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host.strip("[]") or "127.0.0.1", int(port))
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                answer = await _read_all(reader)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        raise ProbeFailed(f"http://{address}{path} gave no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ProbeFailed(f"http://{address}{path} cannot be reached: {error.strerror or error}") from None
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ProbeFailed(f"what listens at {address} does not speak HTTP")
    return int(words[1]), body


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    parts, size = [], 0
    while size < _MAX_BODY and (part := await reader.read(65_536)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


async def http_ready(address: str, path: str = "/readyz", *, timeout_s: float = 2.0) -> None:
    """Returns when `path` answers 200; else raises ProbeFailed with what the body says is not ready."""
    status, body = await http_get(address, path, timeout_s=timeout_s)
    if status != 200:
        said = " ".join(body.decode(errors="replace").split())[:500]
        raise ProbeFailed(f"http://{address}{path} answers {status}: {said}")


async def socket_ready(path: Path) -> None:
    """Returns when somebody listens at a Unix socket; else raises ProbeFailed."""
    folder = -1
    try:
        # Paths of sockets may have 107 bytes only; by its folder's descriptor it is always short enough.
        short = str(path)
        if sys.platform == "linux":
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            short = f"/proc/self/fd/{folder}/{path.name}"
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(short)  # a Unix socket answers at once, or not at all
    except OSError as error:
        raise ProbeFailed(f"nobody listens at {path}: {error.strerror or error}") from None
    finally:
        if folder >= 0:
            os.close(folder)
