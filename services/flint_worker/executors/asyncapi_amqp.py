"""AsyncAPI over AMQP 0-9-1. Published: once the broker has confirmed it (publisher confirms).

A channel is a queue or a routing key, as its binding says (`is`; a routing key unless told). Queues and exchanges are
taken as they are, never declared: they belong to others. To consume by a routing key, a queue is made for the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import unquote

import aio_pika
import aiormq.exceptions
import pamqp.exceptions
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.executors.asyncapi_documents import Place
from flint_worker.executors.asyncapi_links import addresses_of, credentials_of, lost, tls_context
from flint_worker.executors.asyncapi_messages import Inbound, Outbound, Stream, decoded
from flint_worker.executors.faults import Fault
from flint_worker.executors.outbound import Outbound as Network

__all__ = ["AmqpLink"]

_EACH_S: Final = 10.0
_CLOSE_S: Final = 2.0
_LARGEST_WINDOW: Final = 65_535


class AmqpLink:
    """A connection for each call."""

    def __init__(self, settings: Settings, network: Network) -> None:
        self._settings = settings
        self._network = network

    async def publish(self, place: Place, message: Outbound, policy: Mapping[str, Any] | None) -> dict[str, Any]:
        """Sends it, persistent unless the binding says otherwise, the idempotency key as its message id."""
        binding = place.operation_binding
        exchange, key, to_queue = _route(place)
        body = aio_pika.Message(
            message.body,
            headers=dict(message.headers),
            content_type=message.content_type or None,
            message_id=message.key or None,
            delivery_mode=1 if binding.get("deliveryMode") == 1 else 2,
            priority=binding.get("priority"),
            app_id="flint",
        )
        async with self._channel(place, policy) as channel:
            target = await channel.get_exchange(exchange) if exchange else channel.default_exchange
            # To a queue that is not there nothing could be delivered: the broker says so only when it must.
            mandatory = to_queue or binding.get("mandatory") is True
            try:
                await target.publish(body, key, mandatory=mandatory, timeout=_EACH_S)
            except aiormq.exceptions.DeliveryError:
                detail = f"no queue takes '{key[:200]}' on amqp at {place.host}:{place.port}"
                raise Fault(ProblemType.COMMUNICATION, 404, "The broker cannot deliver the message", detail) from None
        return {}

    @asynccontextmanager
    async def subscribe(self, place: Place, policy: Mapping[str, Any] | None, window: int) -> AsyncIterator[Stream]:
        """Messages of the queue, or of a routing key from now on; not more than the window unacknowledged."""
        exchange, key, is_queue = _route(place)
        async with self._channel(place, policy) as channel:
            await channel.set_qos(prefetch_count=min(window, _LARGEST_WINDOW), timeout=_EACH_S)
            if is_queue:
                queue = await channel.get_queue(key, ensure=True)
            else:
                queue = await channel.declare_queue(exclusive=True, auto_delete=True, timeout=_EACH_S)
                if exchange:
                    await queue.bind(exchange, key, timeout=_EACH_S)
            stream = _Stream(channel, queue)
            await stream.begin()
            yield stream

    @asynccontextmanager
    async def _channel(self, place: Place, policy: Mapping[str, Any] | None) -> AsyncIterator[AbstractChannel]:
        addresses = await addresses_of(self._settings, place)
        credentials = await credentials_of(self._network, policy, place)
        queue = place.channel_binding.get("queue", {})
        virtual = queue.get("vhost") if isinstance(queue, dict) else None
        if place.path.strip("/"):
            virtual = unquote(place.path[1:])
        try:
            connection = await aio_pika.connect(
                host=addresses[0],
                port=place.port,
                login="guest" if credentials is None else credentials.user or "",
                password="guest" if credentials is None else credentials.secret,
                virtualhost=virtual or "/",
                ssl=place.tls,
                ssl_context=await asyncio.to_thread(tls_context, self._settings, place),
                timeout=_EACH_S,
                client_properties={"connection_name": "flint"},
            )
        except (aiormq.exceptions.ProbableAuthenticationError, aiormq.exceptions.AuthenticationError):
            detail = f"amqp at {place.host}:{place.port}"
            title = "The broker does not accept the credentials"
            raise Fault(ProblemType.AUTHENTICATION, 401, title, detail) from None
        except (aiormq.exceptions.AMQPError, pamqp.exceptions.AMQPError, OSError, TimeoutError) as error:
            raise lost(place, error) from None
        try:
            async with asyncio.timeout(_EACH_S):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            yield channel
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            title = "The queue or exchange is not there"
            raise Fault(ProblemType.COMMUNICATION, 404, title, str(error)[:300]) from None
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise Fault(ProblemType.AUTHORIZATION, 403, "The broker does not permit this", str(error)[:300]) from None
        except (aiormq.exceptions.AMQPError, pamqp.exceptions.AMQPError, OSError) as error:
            raise lost(place, error) from None
        finally:
            await asyncio.wait({asyncio.ensure_future(connection.close())}, timeout=_CLOSE_S)


class _Stream:
    def __init__(self, channel: AbstractChannel, queue: AbstractQueue) -> None:
        self._channel = channel
        self._queue = queue
        # The broker sends no more than the window before something is acknowledged.
        self._came: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue(_LARGEST_WINDOW + 1)
        self._kept: list[AbstractIncomingMessage] = []

    async def begin(self) -> None:
        """Asks the broker to send."""
        self._channel.close_callbacks.add(self._closed)
        await self._queue.consume(self._came.put, timeout=_EACH_S)

    def _closed(self, *_: Any) -> None:
        if not self._came.full():
            self._came.put_nowait(None)

    async def next(self) -> Inbound | None:
        message = await self._came.get()
        if message is None:
            raise ConnectionResetError
        self._kept.append(message)
        headers = dict(message.headers)
        payload = decoded(message.body, message.content_type or "")
        size = len(message.body) + len(str(headers))
        return Inbound(payload, _plain(headers), size, message.correlation_id, message)

    async def drop(self, message: Inbound) -> None:
        """Acknowledges it at once."""
        self._kept.remove(message.token)
        await message.token.ack()

    async def accept(self) -> None:
        """Acknowledges what was kept; a message that ended the stream unwanted goes back with the connection."""
        for message in self._kept:
            await message.ack()


def _route(place: Place) -> tuple[str, str, bool]:
    """Exchange, routing key, and whether that is a queue."""
    binding = place.channel_binding
    if binding.get("is") == "queue":
        queue = binding.get("queue")
        name = queue.get("name") if isinstance(queue, dict) else None
        return "", str(name or place.address), True
    exchange = binding.get("exchange")
    name = exchange.get("name") if isinstance(exchange, dict) else None
    return str(name or ""), place.address, not name


def _plain(value: Any) -> Any:
    """Headers as JSON: AMQP has times and bytes among them."""
    if isinstance(value, dict):
        return {str(name): _plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str | int | float | bool | None) else str(value)
