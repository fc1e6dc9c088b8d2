"""Reads what definitions refer to when they are applied: functions of catalogs, schemas.

Over http and https, bounded in size, time, redirects and number, and to public addresses alone unless others are
allowed: the check is on the address that is really connected to, so neither a name that resolves differently the second
time nor a redirect gains anything. Files only where somebody lints on a machine of their own.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urljoin, urlsplit

import certifi
import httpcore

from flint_core.definition import Compiled, DefinitionLimits, Finding, Resource, Rule, Severity, compile_definition
from flint_core.definition.reader import read

__all__ = ["ResourceFailed", "ResourceLimits", "ResourceReader", "compile_with_resources"]

_ROUNDS: Final = 8
"""A text may need further texts, so deep."""
_REDIRECTS: Final = 5
_CONCURRENT: Final = 8
_REDIRECTED: Final = frozenset({301, 302, 303, 307, 308})
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class ResourceFailed(Exception):
    """A text could not be read; the message says why, and holds no credentials."""


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """Bounds of one text. `files`: whether `file:` is read too."""

    bytes: int = 2**20
    seconds: float = 10.0
    allow_private: bool = False
    files: bool = False


class ResourceReader:
    """Reads texts. `close` ends its connections. For one event loop."""

    def __init__(self, limits: ResourceLimits) -> None:
        self._limits = limits
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def close(self) -> None:
        """Ends the connections."""
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None

    async def read(self, resource: Resource) -> bytes:
        """The text. Takes at most the limit's seconds. Raises ResourceFailed."""
        try:
            if urlsplit(resource.uri).scheme == "file":
                return await asyncio.to_thread(self._file, resource.uri)
            async with asyncio.timeout(self._limits.seconds):
                return await self._http(resource)
        except TimeoutError:
            raise ResourceFailed(f"it did not come within {self._limits.seconds:g} seconds") from None
        except _AddressRefused:
            raise ResourceFailed(
                "its host has no public address; gateway.allow_private_addresses permits others"
            ) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise ResourceFailed(f"{type(error).__name__}: {str(error)[:200]}") from None
        except (httpcore.UnsupportedProtocol, ValueError, UnicodeError) as error:
            raise ResourceFailed(f"this is no usable address: {str(error)[:200]}") from None

    def _file(self, uri: str) -> bytes:
        if not self._limits.files:
            raise ResourceFailed("files are read by `flint lint` alone; publish it over https")
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise ResourceFailed("a file: address has no host")
        path = Path(unquote(parts.path))
        try:
            if not path.is_file():
                raise ResourceFailed(f"there is no file {path}")
            with path.open("rb") as file:
                data = file.read(self._limits.bytes + 1)
        except OSError as error:
            raise ResourceFailed(f"{path}: {error.strerror}") from None
        return self._bounded(data)

    async def _http(self, resource: Resource) -> bytes:
        uri, authorization = resource.uri, _authorization(resource.authentication)
        for _ in range(_REDIRECTS + 1):
            headers = [("Host", _host(uri)), ("Accept", "*/*"), ("User-Agent", "flint")]
            if authorization is not None and _origin(uri) == _origin(resource.uri):
                headers.append(("Authorization", authorization))
            async with self._connections().stream("GET", uri, headers=headers) as response:
                if response.status in _REDIRECTED:
                    target = next((value for name, value in response.headers if name.lower() == b"location"), None)
                    if target is None:
                        raise ResourceFailed(f"a redirect ({response.status}) that says not whereto")
                    uri = urljoin(uri, target.decode("ascii", "replace"))
                    if urlsplit(uri).scheme not in ("http", "https"):
                        raise ResourceFailed("a redirect to something else than http or https")
                    continue
                if response.status != 200:
                    raise ResourceFailed(f"its server answered with status {response.status}")
                data = bytearray()
                async for chunk in response.aiter_stream():
                    data += chunk
                    if len(data) > self._limits.bytes:
                        break
                return self._bounded(bytes(data))
        raise ResourceFailed(f"more than {_REDIRECTS} redirects")

    def _bounded(self, data: bytes) -> bytes:
        if len(data) > self._limits.bytes:
            raise ResourceFailed(f"it has more than {self._limits.bytes} bytes")
        return data

    def _connections(self) -> httpcore.AsyncConnectionPool:
        if self._pool is None:
            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=ssl.create_default_context(cafile=certifi.where()),
                max_connections=_CONCURRENT,
                keepalive_expiry=5.0,
                network_backend=_PublicBackend(self._limits.allow_private),
            )
        return self._pool


async def compile_with_resources(
    source: str, limits: DefinitionLimits, reader: ResourceReader, turn: asyncio.Lock | None = None
) -> Compiled:
    """Compile a definition, reading what it needs. What cannot be read is a finding.

    Compiling runs in a thread, with `turn` held when there is one; nothing is read meanwhile.
    """

    async def compile_now() -> Compiled:
        async with turn or nullcontext():
            return await asyncio.to_thread(compile_definition, source, limits, resources)

    resources: dict[str, bytes] = {}
    failures: dict[str, tuple[Resource, str]] = {}
    compiled = await compile_now()
    for _ in range(_ROUNDS):
        missing = [need for need in compiled.needs if need.uri not in failures]
        if not missing or any(finding.severity is Severity.ERROR for finding in compiled.findings):
            break
        places = asyncio.Semaphore(_CONCURRENT)

        async def bring(need: Resource, places: asyncio.Semaphore = places) -> None:
            async with places:
                try:
                    resources[need.uri] = await reader.read(need)
                except ResourceFailed as error:
                    failures[need.uri] = (need, str(error))

        async with asyncio.TaskGroup() as group:
            for need in missing:
                group.create_task(bring(need))
        if failures:
            break
        compiled = await compile_now()
    refused = any(finding.severity is Severity.ERROR for finding in compiled.findings)
    if not compiled.needs or refused:
        return compiled
    if not failures:
        failures = {need.uri: (need, f"texts refer to texts more than {_ROUNDS} deep") for need in compiled.needs}
    root = await asyncio.to_thread(read, source, limits)
    findings = [
        Finding(Severity.ERROR, Rule.RESOURCE, f"{uri} cannot be read: {why}", need.pointer, *root.place(need.pointer))
        for uri, (need, why) in sorted(failures.items())
    ]
    return Compiled(None, sorted([*compiled.findings, *findings], key=lambda each: (each.line, each.column)))


def _authorization(authentication: dict[str, Any] | None) -> str | None:
    if authentication is None:
        return None
    if "bearer" in authentication:
        return f"Bearer {authentication['bearer']['token']}"
    person = authentication["basic"]
    pair = f"{person['username']}:{person['password']}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _origin(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.scheme, parts.netloc


def _host(uri: str) -> str:
    return urlsplit(uri).netloc.rpartition("@")[2]


class _AddressRefused(Exception):
    """The host has only addresses that are not public."""


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return False
        if embedded is not None:
            return _is_public(str(embedded))
    return address.is_global and not address.is_multicast


class _PublicBackend(httpcore.AsyncNetworkBackend):
    """Connects by TCP to the very addresses that it has checked."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first permitted address that answers. Raises _AddressRefused."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise httpcore.ConnectError(f"{host} has no address") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._allow_private:
            addresses = [address for address in addresses if _is_public(address)]
            if not addresses:
                raise _AddressRefused
        failed: Exception | None = None
        for address in addresses[:4]:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Refused: sockets of this machine are not the outside world."""
        raise _AddressRefused

    async def sleep(self, seconds: float) -> None:
        """Waits; httpcore asks for it between attempts."""
        await asyncio.sleep(seconds)
