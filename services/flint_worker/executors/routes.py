"""The way an HTTP request takes: directly or through the configured proxy, and with which client certificate.

Nothing is read from the environment: a proxy that somebody's shell names would see what definitions send.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import certifi
import httpcore
import httpx

from flint_ops.config import CertificateSettings, Settings
from flint_worker.executors.connections import WatchedBackend

__all__ = ["LANE_CONNECTIONS", "Host", "Route", "Routes", "host_of", "names_host"]

LANE_CONNECTIONS: Final = 16
_IDLE_S: Final = 4.0
"""Many servers close a connection that was idle for 5 s: ours goes first."""


class Host(NamedTuple):
    """Where a URL leads."""

    name: str
    port: int


class Route(NamedTuple):
    """One way; requests of the same way may share connections. `certificate`: a name in the configuration, or empty."""

    proxied: bool
    certificate: str


def names_host(patterns: Iterable[str], host: Host) -> bool:
    """Whether one of the patterns covers the host, as NO_PROXY is commonly read.

    `*` is every host; `example.com`, `.example.com` and `*.example.com` are the name and all below it; an address or a
    range (`10.0.0.0/8`) is compared with a host that is an address; `:port` behind any of them narrows it.
    """
    return any(_covers(pattern.strip().lower(), host) for pattern in patterns)


def _covers(pattern: str, host: Host) -> bool:
    if not pattern:
        return False
    bare, _, port = pattern.rpartition(":")
    if bare and port.isdigit() and (":" not in bare or bare.endswith("]")):
        if int(port) != host.port:
            return False
        pattern = bare
    if pattern == "*":
        return True
    name = host.name.lower().strip("[]").rstrip(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        suffix = pattern.removeprefix("*").removeprefix(".").rstrip(".")
        return bool(suffix) and (name == suffix or name.endswith("." + suffix))
    try:
        return address in ipaddress.ip_network(pattern.strip("[]"), strict=False)
    except ValueError:
        return False


class Routes:
    """Chooses ways and makes the connection pools for them. Raises OSError (also ssl.SSLError) for unusable files."""

    def __init__(self, settings: Settings) -> None:
        worker = settings.worker
        self._allow_private = worker.allow_private_addresses
        self._no_proxy = tuple(worker.no_proxy)
        self._proxy: httpx.Proxy | None = None
        if text := worker.proxy.get_secret_value():
            self._proxy = httpx.Proxy(text)
            if self._proxy.url.scheme not in ("http", "https"):
                raise ValueError("worker.proxy must be an http:// or https:// address")
        self._ca_file = worker.ca_file
        self._certificates = dict(settings.certificates)
        self._contexts = {"": self._context(None)}
        for name, certificate in self._certificates.items():
            self._contexts[name] = self._context(certificate)

    def choose(self, url: httpx.URL) -> Route:
        """The way to a URL."""
        host = host_of(url)
        proxied = self._proxy is not None and not names_host(self._no_proxy, host)
        if url.scheme == "https":
            for name, certificate in self._certificates.items():
                if names_host(certificate.hosts, host):
                    return Route(proxied, name)
        return Route(proxied, "")

    @property
    def checks_behind_proxy(self) -> bool:
        """Whether private addresses are to be refused although a proxy connects."""
        return not self._allow_private

    def pool(self, route: Route) -> httpcore.AsyncConnectionPool:
        """A new pool of up to 16 connections."""
        context = self._contexts[route.certificate]
        if not route.proxied or self._proxy is None:
            return httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=LANE_CONNECTIONS,
                max_keepalive_connections=LANE_CONNECTIONS,
                keepalive_expiry=_IDLE_S,
                http1=True,
                http2=True,
                network_backend=WatchedBackend(self._allow_private),
            )
        proxy = self._proxy
        return httpcore.AsyncHTTPProxy(
            proxy_url=httpcore.URL(
                scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=b"/"
            ),
            proxy_auth=proxy.raw_auth,
            ssl_context=context,
            proxy_ssl_context=self._contexts[""] if proxy.url.scheme == "https" else None,
            max_connections=LANE_CONNECTIONS,
            max_keepalive_connections=LANE_CONNECTIONS,
            keepalive_expiry=_IDLE_S,
            http1=True,
            http2=True,
            # The proxy was named by the operator and mostly has a private address.
            network_backend=WatchedBackend(True),
        )

    def _context(self, certificate: CertificateSettings | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=certifi.where())
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._ca_file:
            context.load_verify_locations(cafile=Path(self._ca_file))
        if certificate is not None:
            context.load_cert_chain(
                certificate.certificate_file,
                certificate.key_file or None,
                # Empty text rather than None: OpenSSL would ask at the terminal.
                certificate.key_password.get_secret_value(),
            )
        return context


def host_of(url: httpx.URL) -> Host:
    """Host and port of a URL, the scheme's port when it names none."""
    return Host(url.host, url.port or (443 if url.scheme == "https" else 80))
