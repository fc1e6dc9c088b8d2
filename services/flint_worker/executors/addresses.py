"""Which addresses a worker may connect to on a definition's behalf.

The check is on the address that is really connected to: names are resolved here and the connection goes to the address
that was checked, so a name that resolves differently the second time gains nothing, nor does a redirect.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any, Final

import httpcore

__all__ = ["AddressRefused", "GuardedBackend", "NameNotResolved", "is_public", "permitted_addresses", "refuse_private"]

_RESOLVE_S: Final = 10.0
_ADDRESSES: Final = 8
"""A name may have many addresses; so many are tried."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(Exception):
    """The host has only addresses that are not public."""


class NameNotResolved(Exception):
    """The host has no address, or none was found in time; the message says which."""


def is_public(text: str) -> bool:
    """Whether an IP address belongs to the public internet, also when it embeds an IPv4 address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return False
        if embedded is not None:
            return is_public(str(embedded))
    return address.is_global and not address.is_multicast


async def permitted_addresses(host: str, port: int, allow_private: bool) -> list[str]:
    """The addresses of a host that may be connected to, at least one, as IP addresses.

    Whoever connects must use one of these and not the name. Takes at most 10 s. Raises AddressRefused
    and NameNotResolved.
    """
    addresses = await _resolve(host, port)
    if not allow_private:
        addresses = [address for address in addresses if is_public(address)]
        if not addresses:
            raise AddressRefused(host)
    return addresses[:_ADDRESSES]


async def refuse_private(host: str, port: int) -> None:
    """For a host that a proxy is going to connect to: refuses what is known here to be private.

    A name that only the proxy can resolve is left to the proxy. Raises AddressRefused.
    """
    try:
        addresses = await _resolve(host, port)
    except NameNotResolved:
        return
    if not all(map(is_public, addresses)):
        raise AddressRefused(host)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects by TCP to public addresses, and to others only when they are allowed."""

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
        """A connection to the first of the host's permitted addresses that answers, `timeout` for all of them.

        Raises AddressRefused.
        """
        try:
            async with asyncio.timeout(timeout):
                failed: Exception | None = None
                for address in await permitted_addresses(host, port, self._allow_private):
                    try:
                        return await self._backend.connect_tcp(address, port, None, local_address, socket_options)
                    except httpcore.ConnectError as error:
                        failed = error
        except NameNotResolved as error:
            raise httpcore.ConnectError(str(error)) from error
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"no connection within {timeout} s") from None
        raise failed or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Refused: sockets of this machine are not the outside world."""
        raise AddressRefused(path)

    async def sleep(self, seconds: float) -> None:
        """Waits; httpcore asks for it between attempts."""
        await asyncio.sleep(seconds)


async def _resolve(host: str, port: int) -> list[str]:
    try:
        return [str(ipaddress.ip_address(host))]  # an address needs no resolver, which is a thread
    except ValueError:
        pass
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise NameNotResolved(f"{host} was not resolved in time") from None
    except (OSError, UnicodeError) as error:
        raise NameNotResolved(f"{host} cannot be resolved") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not addresses:
        raise NameNotResolved(f"{host} has no address")
    return addresses
