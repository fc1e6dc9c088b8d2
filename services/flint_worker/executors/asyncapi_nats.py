"""AsyncAPI over NATS. Published: once the server has answered a ping that came after the message.

The only file outside the bus that imports the NATS client: this one talks to other people's servers, never to Flint's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.executors.asyncapi_documents import Place
from flint_worker.executors.asyncapi_links import addresses_of, credentials_of, lost, tls_context
from flint_worker.executors.asyncapi_messages import Inbound, Outbound, Stream, decoded
from flint_worker.executors.faults import Fault, invalid
from flint_worker.executors.outbound import Outbound as Network

__all__ = ["NatsLink"]

_CONNECT_S: Final = 10
_CLOSE_S: Final = 2.0


class NatsLink:
    """A connection for each call."""

    def __init__(self, settings: Settings, network: Network) -> None:
        self._settings = settings
        self._network = network

    async def publish(self, place: Place, message: Outbound, policy: Mapping[str, Any] | None) -> dict[str, Any]:
        """Sends it, with the idempotency key where JetStream looks for it."""
        headers = dict(message.headers)
        if message.key:
            headers.setdefault("Nats-Msg-Id", message.key)
        if message.content_type:
            headers.setdefault("Content-Type", message.content_type)
        async with self._connected(place, policy) as client:
            try:
                await client.publish(place.address, message.body, headers=headers)
                await client.flush(_CONNECT_S)
            except nats.errors.MaxPayloadError:
                raise Fault(ProblemType.PAYLOAD_TOO_LARGE, 413, "The message is too large for the server") from None
            except (nats.errors.BadSubjectError, ValueError):
                raise invalid(f"'{place.address[:200]}' is no subject that can be published to") from None
            if isinstance(client.last_error, nats.errors.Error) and "permissions" in str(client.last_error).lower():
                raise _forbidden(place)
        return {}

    @asynccontextmanager
    async def subscribe(self, place: Place, policy: Mapping[str, Any] | None, window: int) -> AsyncIterator[Stream]:
        """Messages from now on; within the document's queue group when its binding names one."""
        queue = str(place.operation_binding.get("queue", ""))
        async with self._connected(place, policy) as client:
            try:
                subscription = await client.subscribe(place.address, queue, pending_msgs_limit=window + 1)
                await client.flush(_CONNECT_S)
            except (nats.errors.BadSubjectError, ValueError):
                raise invalid(f"'{place.address[:200]}' is no subject that can be subscribed to") from None
            yield _Stream(place, client, subscription)

    @asynccontextmanager
    async def _connected(self, place: Place, policy: Mapping[str, Any] | None) -> AsyncIterator[Client]:
        addresses = await addresses_of(self._settings, place)
        credentials = await credentials_of(self._network, policy, place)
        client = Client()
        options: dict[str, Any] = {}
        if credentials is not None and credentials.user is None:
            options["token"] = credentials.secret
        elif credentials is not None:
            options |= {"user": credentials.user, "password": credentials.secret}
        context = await asyncio.to_thread(tls_context, self._settings, place)
        if context is not None:
            options |= {"tls": context, "tls_hostname": place.host}

        async def ignore(*_: Any) -> None:
            """What goes wrong shows where it is waited for."""

        host = [f"[{address}]" if ":" in address else address for address in addresses]
        try:
            await client.connect(
                [f"nats://{address}:{place.port}" for address in host],
                name="flint",
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_S,
                error_cb=ignore,
                dont_randomize=True,
                **options,
            )
        except (nats.errors.Error, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            if "authorization" in str(error).lower():
                raise _unauthorized(place) from None
            raise lost(place, error) from None
        try:
            yield client
        except (nats.errors.Error, OSError) as error:
            if "authorization" in str(client.last_error).lower():
                raise _unauthorized(place) from None
            raise lost(place, error) from None
        finally:
            async with asyncio.timeout(_CLOSE_S):
                await client.close()


class _Stream:
    def __init__(self, place: Place, client: Client, subscription: Subscription) -> None:
        self._place = place
        self._client = client
        self._subscription = subscription

    async def next(self) -> Inbound | None:
        message: Msg = await self._subscription.next_msg(timeout=None)
        if "permissions" in str(self._client.last_error or "").lower():
            raise _forbidden(self._place)
        headers = dict(message.headers or {})
        payload = decoded(message.data, headers.get("Content-Type", ""))
        size = len(message.data) + sum(len(name) + len(value) for name, value in headers.items())
        return Inbound(payload, headers, size, headers.get("correlation-id"))

    async def drop(self, message: Inbound) -> None:
        """NATS knows no acknowledgement outside of JetStream."""

    async def accept(self) -> None:
        """The same."""


def _unauthorized(place: Place) -> Fault:
    detail = f"nats at {place.host}:{place.port}"
    return Fault(ProblemType.AUTHENTICATION, 401, "The server does not accept the credentials", detail)


def _forbidden(place: Place) -> Fault:
    detail = f"'{place.address[:200]}' on nats at {place.host}:{place.port}"
    return Fault(ProblemType.AUTHORIZATION, 403, "The server does not permit this subject", detail)
