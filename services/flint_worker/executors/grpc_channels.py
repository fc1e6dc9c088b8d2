"""Channels to gRPC services outside: shared by calls, bounded in number, only to addresses that are permitted.

gRPC's core resolves names by itself, so it is never given one: a name is resolved here and the channel goes to the
addresses that were checked, with the name as its authority and, with TLS, as the name that the certificate must have.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import certifi
import grpc
import grpc.aio

from flint_ops.config import Settings
from flint_worker.executors.addresses import permitted_addresses
from flint_worker.executors.routes import Host, names_host

__all__ = ["Channels", "Target"]

_MOST_CHANNELS: Final = 256
_RESOLVED_S: Final = 30.0
"""A name is looked up again when it was resolved this long ago."""


class Target(NamedTuple):
    """A service's place. `host` as the definition writes it, an IPv6 address in brackets."""

    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """host:port, the scheme's own port left out."""
        return self.host if self.port == (443 if self.tls else 80) else f"{self.host}:{self.port}"


class _Held:
    __slots__ = ("channel", "users")

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.users = 0


class Channels:
    """Belongs to one event loop. A channel in use is never closed."""

    def __init__(self, settings: Settings, message_bytes: int) -> None:
        """Raises OSError for certificates that cannot be read."""
        self._allow_private = settings.worker.allow_private_addresses
        roots = Path(certifi.where()).read_bytes()
        if settings.worker.ca_file:
            roots += b"\n" + Path(settings.worker.ca_file).read_bytes()
        self._roots = roots
        self._certificates = tuple(settings.certificates.values())
        self._message_bytes = message_bytes
        self._held: OrderedDict[tuple[Target, tuple[str, ...]], _Held] = OrderedDict()
        self._resolved: OrderedDict[Target, tuple[float, tuple[str, ...]]] = OrderedDict()

    @asynccontextmanager
    async def to(self, target: Target) -> AsyncIterator[grpc.aio.Channel]:
        """A channel for one call. Raises AddressRefused and httpcore.ConnectError."""
        key = (target, await self._addresses(target))
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = _Held(self._open(*key))
        self._held.move_to_end(key)
        held.users += 1
        try:
            yield held.channel
        finally:
            held.users -= 1
            await self._trim()

    async def close(self) -> None:
        """Closes all channels."""
        held, self._held = self._held, OrderedDict()
        for entry in held.values():
            await entry.channel.close()

    async def _addresses(self, target: Target) -> tuple[str, ...]:
        now = asyncio.get_running_loop().time()
        known = self._resolved.get(target)
        if known is not None and known[0] > now:
            return known[1]
        found = await permitted_addresses(target.host.strip("[]"), target.port, self._allow_private)
        addresses = tuple(sorted(found))
        self._resolved[target] = (now + _RESOLVED_S, addresses)
        self._resolved.move_to_end(target)
        while len(self._resolved) > 4 * _MOST_CHANNELS:
            self._resolved.popitem(last=False)
        return addresses

    def _open(self, target: Target, addresses: tuple[str, ...]) -> grpc.aio.Channel:
        # One family: the core's ipv4 and ipv6 schemes take no mixture, and it tries the addresses in order.
        four = [f"{address}:{target.port}" for address in addresses if ":" not in address]
        six = [f"[{address}]:{target.port}".replace("%", "%25") for address in addresses if ":" in address]
        uri = "ipv4:" + ",".join(four) if four else "ipv6:" + ",".join(six)
        options: list[tuple[str, int | str]] = [
            ("grpc.default_authority", target.authority),
            ("grpc.enable_http_proxy", 0),  # a proxy would connect where it likes
            ("grpc.enable_retries", 0),  # the definition says what is repeated
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.max_receive_message_length", self._message_bytes),
            ("grpc.max_send_message_length", self._message_bytes),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.primary_user_agent", "flint"),
        ]
        if not target.tls:
            return grpc.aio.insecure_channel(uri, options=options)
        options.append(("grpc.ssl_target_name_override", target.host.strip("[]")))
        return grpc.aio.secure_channel(uri, self._credentials(target), options=options)

    def _credentials(self, target: Target) -> grpc.ChannelCredentials:
        """Trust as for HTTP, and the client certificate that is configured for the host.

        gRPC takes keys without a password only: a certificate whose key has one is left out.
        """
        for certificate in self._certificates:
            if names_host(certificate.hosts, Host(target.host, target.port)):
                if certificate.key_password.get_secret_value():
                    continue
                chain = Path(certificate.certificate_file).read_bytes()
                key = Path(certificate.key_file).read_bytes() if certificate.key_file else chain
                return grpc.ssl_channel_credentials(self._roots, key, chain)
        return grpc.ssl_channel_credentials(self._roots)

    async def _trim(self) -> None:
        excess = len(self._held) - _MOST_CHANNELS
        for key in [key for key, held in self._held.items() if not held.users][: max(0, excess)]:
            await self._held.pop(key).channel.close()
