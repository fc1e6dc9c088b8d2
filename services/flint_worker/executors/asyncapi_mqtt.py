"""AsyncAPI over MQTT 3.1.1 and 5. Published: once the broker has acknowledged it (QoS 1, or 2 by the binding)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.executors.asyncapi_documents import Place
from flint_worker.executors.asyncapi_links import addresses_of, credentials_of, lost, tls_context
from flint_worker.executors.asyncapi_messages import Inbound, Outbound, Stream, decoded
from flint_worker.executors.faults import Fault, invalid
from flint_worker.executors.outbound import Outbound as Network

__all__ = ["MqttLink"]

_EACH_S: Final = 10.0
_REFUSED: Final = frozenset({4, 5, 134, 135, 140})
"""Return codes of a refused connection: bad user or password, not authorized, bad authentication method."""


class MqttLink:
    """A connection for each call, with a session that ends with it."""

    def __init__(self, settings: Settings, network: Network) -> None:
        self._settings = settings
        self._network = network

    async def publish(self, place: Place, message: Outbound, policy: Mapping[str, Any] | None) -> dict[str, Any]:
        """Sends it; MQTT 5 carries headers, the idempotency key among them, as user properties."""
        properties = None
        if place.protocol == "mqtt5":
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            headers = dict(message.headers)
            if message.key:
                headers.setdefault("idempotency-key", message.key)
            properties.UserProperty = list(headers.items())
            if message.content_type:
                properties.ContentType = message.content_type
        elif message.headers.keys() - {"traceparent"}:
            raise invalid("/message/headers: MQTT 3.1.1 has none; use a server of MQTT 5")
        if "#" in place.address or "+" in place.address or not place.address:
            raise invalid(f"'{place.address[:200]}' is no topic that can be published to")
        binding = place.operation_binding
        async with self._connected(place, policy, 0) as client:
            await client.publish(
                place.address,
                message.body,
                qos=2 if binding.get("qos") == 2 else 1,
                retain=binding.get("retain") is True,
                properties=properties,
            )
        return {}

    @asynccontextmanager
    async def subscribe(self, place: Place, policy: Mapping[str, Any] | None, window: int) -> AsyncIterator[Stream]:
        """Messages from now on, and those that the broker retains."""
        async with self._connected(place, policy, window + 1) as client:
            granted = await client.subscribe(place.address, qos=2 if place.operation_binding.get("qos") == 2 else 1)
            code = granted[0] if granted else 0
            if (code if isinstance(code, int) else code.value) >= 128:
                detail = f"'{place.address[:200]}' on mqtt at {place.host}:{place.port}"
                raise Fault(ProblemType.AUTHORIZATION, 403, "The broker does not permit this topic", detail)
            yield _Stream(client)

    @asynccontextmanager
    async def _connected(
        self, place: Place, policy: Mapping[str, Any] | None, window: int
    ) -> AsyncIterator[aiomqtt.Client]:
        address = (await addresses_of(self._settings, place))[0]
        credentials = await credentials_of(self._network, policy, place)
        version5 = place.protocol == "mqtt5"
        client = aiomqtt.Client(
            address,
            place.port,
            # A token has no user; MQTT 3.1.1 allows no password without one.
            username=None if credentials is None else credentials.user or "token",
            password=None if credentials is None else credentials.secret,
            protocol=aiomqtt.ProtocolVersion.V5 if version5 else aiomqtt.ProtocolVersion.V311,
            clean_session=None if version5 else True,
            timeout=_EACH_S,
            max_queued_incoming_messages=window,
            tls_context=await asyncio.to_thread(tls_context, self._settings, place),
        )
        try:
            async with client:
                yield client
        except aiomqtt.MqttCodeError as error:
            code = error.rc if isinstance(error.rc, int) else getattr(error.rc, "value", 0)
            if code in _REFUSED:
                detail = f"mqtt at {place.host}:{place.port}"
                title = "The broker does not accept the credentials"
                raise Fault(ProblemType.AUTHENTICATION, 401, title, detail) from None
            raise lost(place, f"code {code}") from None
        except (aiomqtt.MqttError, OSError, ValueError) as error:
            raise lost(place, error) from None


class _Stream:
    def __init__(self, client: aiomqtt.Client) -> None:
        self._messages = aiter(client.messages)

    async def next(self) -> Inbound | None:
        message = await anext(self._messages)
        body = message.payload
        body = body if isinstance(body, bytes) else bytes(body) if isinstance(body, bytearray) else str(body).encode()
        headers: dict[str, Any] = {}
        content_type, correlation = "", None
        properties = message.properties
        if properties is not None:
            headers = dict(getattr(properties, "UserProperty", []))
            content_type = getattr(properties, "ContentType", "")
            given = getattr(properties, "CorrelationData", None)
            correlation = given.decode("utf-8", "replace") if isinstance(given, bytes) else None
        size = len(body) + sum(len(name) + len(value) for name, value in headers.items())
        return Inbound(decoded(body, content_type), headers, size, correlation)

    async def drop(self, message: Inbound) -> None:
        """The broker has its acknowledgement since the message came."""

    async def accept(self) -> None:
        """The same."""
