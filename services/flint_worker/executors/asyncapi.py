"""`asyncapi`: publishes a message to a channel that an AsyncAPI document describes, or consumes messages from one.

A publication ends when the other side has acknowledged it. A subscription begins with the call and ends with it: what
was published before belongs to whatever the broker keeps (a queue), and is lost where it keeps nothing.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from typing import Any, Final

import httpcore

from flint_core.problems import ProblemType
from flint_jq import EvaluatorPool
from flint_ops.config import Settings
from flint_worker.executors import ResolvedCall
from flint_worker.executors.addresses import AddressRefused
from flint_worker.executors.arguments import check_arguments
from flint_worker.executors.asyncapi_documents import Place, find_place
from flint_worker.executors.asyncapi_messages import Consumption, Link, encoded
from flint_worker.executors.client import http_url
from flint_worker.executors.faults import Fault
from flint_worker.executors.openapi_documents import Documents
from flint_worker.executors.outbound import Outbound

__all__ = ["AsyncApiExecutor"]

_TRACE: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_LONGEST_S: Final = 24 * 3600.0


class AsyncApiExecutor:
    """The function `asyncapi`."""

    unfinished = 0  # nothing outlives its call

    def __init__(self, settings: Settings, outbound: Outbound, evaluators: EvaluatorPool | None) -> None:
        self._settings = settings
        self._outbound = outbound
        self._evaluators = evaluators
        self._documents = Documents(outbound, settings.limits.document_bytes, settings.worker.document_cache_bytes)
        self._links: dict[str, Link] = {}

    async def close(self) -> None:
        """Nothing of its own: each call has its own connection, or the HTTP client's."""

    async def execute(self, call: ResolvedCall) -> Any:
        """What publishing gave, or the messages that were consumed. Raises ExecutionFailed."""
        arguments = check_arguments(call)
        consumption: Consumption | None = None
        try:
            if "subscription" in arguments:
                limits = self._settings.limits
                most = self._settings.worker.stream_messages
                consumption = Consumption(arguments["subscription"], self._evaluators, most, limits.value_bytes)
            limit_s = self._limit_s(call, consumption)
            try:
                async with asyncio.timeout(limit_s):
                    return await self._perform(call, arguments, consumption)
            except TimeoutError:
                detail = f"more than {limit_s:g} s"
                raise Fault(ProblemType.TIMEOUT, 408, "The AsyncAPI call took too long", detail) from None
            except AddressRefused:
                detail = "the host has no public address; worker.allow_private_addresses permits others"
                raise Fault(ProblemType.AUTHORIZATION, 403, "The address is not permitted", detail) from None
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                raise Fault(ProblemType.COMMUNICATION, 503, "The server cannot be reached", str(error)[:300]) from None
        except Fault as fault:
            raise fault.of(call) from None

    def _limit_s(self, call: ResolvedCall, consumption: Consumption | None) -> float:
        usual_s = self._settings.worker.http_total_s
        if call.deadline_s is not None:
            return min(call.deadline_s, _LONGEST_S)
        if consumption is not None and consumption.for_s is not None:
            return min(consumption.for_s + usual_s, _LONGEST_S)
        return usual_s

    async def _perform(self, call: ResolvedCall, arguments: dict[str, Any], consumption: Consumption | None) -> Any:
        place = find_place(await self._document(call, arguments["document"]["endpoint"]), arguments)
        link = self._link(place.protocol)
        policy: Mapping[str, Any] | None = arguments.get("authentication")
        if consumption is not None:
            await _consume(link, place, policy, consumption)
            return consumption.messages
        trace = f"00-{call.trace_id}-{secrets.token_hex(8)}-01" if _TRACE.fullmatch(call.trace_id) else ""
        message = encoded(arguments["message"], place.content_type, call.idempotency_key, trace)
        more = await link.publish(place, message, policy)
        return {"protocol": place.protocol, "address": place.address, **more}

    async def _document(self, call: ResolvedCall, endpoint: str | dict[str, Any]) -> Any:
        uri, policy = (
            (endpoint, None) if isinstance(endpoint, str) else (endpoint["uri"], endpoint.get("authentication"))
        )
        try:
            return await self._documents.get(http_url(uri, "/document/endpoint"), policy, call.deadline_s)
        except Fault as fault:
            title = fault.title.replace("OpenAPI", "AsyncAPI")
            raise Fault(fault.type, fault.status, title, fault.detail, fault.retry_after_ms) from None

    def _link(self, protocol: str) -> Link:
        """The protocol's way. Client libraries are imported by the first call that needs them."""
        link = self._links.get(protocol)
        if link is None:
            link = self._links[protocol] = _make_link(protocol, self._settings, self._outbound)
        return link


async def _consume(link: Link, place: Place, policy: Mapping[str, Any] | None, consumption: Consumption) -> None:
    """Takes messages until that is enough or the time is over. An end of time is no error: it was asked for."""
    async with link.subscribe(place, policy, consumption.window) as stream:
        try:
            async with asyncio.timeout(consumption.for_s) as limit:
                while (message := await stream.next()) is not None:
                    kept, enough = await consumption.judge(message)
                    if enough:
                        break
                    if not kept:
                        await stream.drop(message)
        except TimeoutError:
            if not limit.expired():
                raise
        await stream.accept()


def _make_link(protocol: str, settings: Settings, outbound: Outbound) -> Link:
    if protocol == "nats":
        from flint_worker.executors.asyncapi_nats import NatsLink  # noqa: PLC0415

        return NatsLink(settings, outbound)
    if protocol in ("mqtt", "mqtt5"):
        from flint_worker.executors.asyncapi_mqtt import MqttLink  # noqa: PLC0415

        return MqttLink(settings, outbound)
    if protocol == "amqp":
        from flint_worker.executors.asyncapi_amqp import AmqpLink  # noqa: PLC0415

        return AmqpLink(settings, outbound)
    from flint_worker.executors.asyncapi_http import HttpLink  # noqa: PLC0415

    return HttpLink(settings, outbound)
