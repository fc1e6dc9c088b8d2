"""What the protocols with a broker have in common: where to connect, trust, and who connects."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import certifi

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.authentication.policies import read_policy
from flint_worker.executors.addresses import permitted_addresses
from flint_worker.executors.asyncapi_documents import Place
from flint_worker.executors.faults import Fault
from flint_worker.executors.outbound import Outbound

__all__ = ["Credentials", "addresses_of", "credentials_of", "lost", "tls_context"]


class Credentials(NamedTuple):
    """Who connects: a user, or a token (the user is None then)."""

    user: str | None
    secret: str


async def addresses_of(settings: Settings, place: Place) -> list[str]:
    """Addresses of the place's host that may be connected to. Raises AddressRefused and httpcore.ConnectError."""
    return await permitted_addresses(place.host, place.port, settings.worker.allow_private_addresses)


async def credentials_of(outbound: Outbound, policy: Mapping[str, Any] | None, place: Place) -> Credentials | None:
    """A policy as what brokers take. Raises Fault."""
    if not policy:
        return None
    scheme, members, _ = read_policy(policy)
    if scheme == "digest":
        detail = f"{place.protocol} has no digest authentication"
        raise Fault(ProblemType.CONFIGURATION, 400, "The policy cannot be used", detail)
    if scheme == "basic":
        return Credentials(members["username"], members["password"])
    headers = await outbound.authenticator.headers(policy, "POST", f"https://{place.host}/")
    return Credentials(None, headers["authorization"].partition(" ")[2])


class _NamedContext(ssl.SSLContext):
    """A context for a connection to an address: the certificate must be the host's all the same."""

    host = ""

    def wrap_socket(self, *args: Any, **options: Any) -> Any:
        return super().wrap_socket(*args, **{**options, "server_hostname": self.host})

    def wrap_bio(self, *args: Any, **options: Any) -> Any:
        if len(args) > 3:
            args = (*args[:3], self.host, *args[4:])
        else:
            options["server_hostname"] = self.host
        return super().wrap_bio(*args, **options)


def tls_context(settings: Settings, place: Place) -> ssl.SSLContext | None:
    """Trust as for HTTP; None when the place is without TLS. Reads files: call it in a thread."""
    if not place.tls:
        return None
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.host = place.host
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=certifi.where())
    if settings.worker.ca_file:
        context.load_verify_locations(cafile=Path(settings.worker.ca_file))
    return context


def lost(place: Place, error: BaseException | str, status: int = 503) -> Fault:
    """The broker cannot be reached, or went away. Takes the error's kind, not its text, which may hold addresses."""
    reason = error if isinstance(error, str) else type(error).__name__
    detail = f"{place.protocol} at {place.host}:{place.port}: {reason}"[:500]
    return Fault(ProblemType.COMMUNICATION, status, "The broker did not do what was asked", detail)
