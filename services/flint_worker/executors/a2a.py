"""`a2a`: one request to an agent per call, by the Agent2Agent protocol over JSON-RPC.

Own code on the worker's HTTP client rather than the official SDK, which would bring Google's API client and protobuf
messages along: what Flint needs of the protocol is an envelope and a stream of server-sent events, and the parameters
and results pass as the definition and the agent write them. Versions 0.3 (whose names of methods the language uses) and
1.0 are spoken; an agent's card tells which.
"""

from __future__ import annotations

import re
import secrets
import uuid
from typing import Any, Final, NamedTuple

import httpx
import orjson

from flint_core.functions.a2a import STREAMING
from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.executors import ResolvedCall
from flint_worker.executors.arguments import check_arguments
from flint_worker.executors.client import http_url, public_uri, retry_after_ms
from flint_worker.executors.faults import Fault
from flint_worker.executors.openapi_documents import Documents
from flint_worker.executors.outbound import Outbound
from flint_worker.executors.server_events import EventTooLarge, server_events

__all__ = ["A2aExecutor"]

_ERROR_BODY_BYTES: Final = 65_536
_TRACE: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_V1_METHODS: Final = {
    "message/send": "SendMessage",
    "message/stream": "SendStreamingMessage",
    "tasks/get": "GetTask",
    "tasks/list": "ListTasks",
    "tasks/cancel": "CancelTask",
    "tasks/resubscribe": "SubscribeToTask",
    "tasks/pushNotificationConfig/set": "CreateTaskPushNotificationConfig",
    "tasks/pushNotificationConfig/get": "GetTaskPushNotificationConfig",
    "tasks/pushNotificationConfig/list": "ListTaskPushNotificationConfigs",
    "tasks/pushNotificationConfig/delete": "DeleteTaskPushNotificationConfig",
    "agent/getAuthenticatedExtendedCard": "GetExtendedAgentCard",
}
_STATUS: Final = {
    -32700: 400,
    -32600: 400,
    -32601: 501,
    -32602: 400,
    -32001: 404,
    -32002: 409,
    -32003: 501,
    -32004: 501,
}
"""HTTP-like statuses of the error codes of JSON-RPC and A2A; what is missing is 500."""


class _Agent(NamedTuple):
    """Where an agent listens, and how. `policy`: credentials that it may see."""

    url: httpx.URL
    version: str  # "0.3" or "1.0"
    policy: dict[str, Any] | None


class A2aExecutor:
    """The function `a2a`."""

    unfinished = 0  # nothing outlives its call

    def __init__(self, settings: Settings, outbound: Outbound) -> None:
        self._outbound = outbound
        self._client = outbound.client
        self._value_bytes = settings.limits.value_bytes
        self._cards = Documents(outbound, settings.limits.document_bytes, settings.worker.document_cache_bytes)
        self._most_messages = settings.worker.stream_messages

    async def close(self) -> None:
        """Nothing of its own: the connections are the client's."""

    async def execute(self, call: ResolvedCall) -> Any:
        """The result, or the results of a stream. Raises ExecutionFailed."""
        arguments = check_arguments(call)
        try:
            agent = await self._agent(call, arguments)
            return await self._exchange(call, arguments, agent)
        except Fault as fault:
            raise fault.of(call) from None

    async def _agent(self, call: ResolvedCall, arguments: dict[str, Any]) -> _Agent:
        if "agentCard" not in arguments:
            uri, policy = _endpoint(arguments["server"])
            return _Agent(http_url(uri, "/server"), "0.3", policy)
        uri, policy = _endpoint(arguments["agentCard"]["endpoint"])
        place = http_url(uri, "/agentCard/endpoint")
        try:
            card = await self._cards.get(place, policy, call.deadline_s)
        except Fault as fault:
            title = "The agent's card cannot be had"
            raise Fault(fault.type, fault.status, title, f"{fault.title}: {fault.detail}"[:600]) from None
        url, version = _interface(card.root, place)
        # Credentials for the card are for who gave it; another origin that a card names must not get them.
        return _Agent(url, version, policy if _origin(url) == _origin(place) else None)

    async def _exchange(self, call: ResolvedCall, arguments: dict[str, Any], agent: _Agent) -> Any:
        method = arguments["method"]
        streams = method in STREAMING
        body = orjson.dumps(
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": method if agent.version == "0.3" else _V1_METHODS[method],
                "params": _parameters(call, arguments, agent.version),
            }
        )
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream" if streams else "application/json",
        }
        if streams:
            headers["accept-encoding"] = "identity"
        if agent.version != "0.3":
            headers["A2A-Version"] = agent.version
        if call.idempotency_key:
            headers["Idempotency-Key"] = call.idempotency_key
        if _TRACE.fullmatch(call.trace_id):
            headers["traceparent"] = f"00-{call.trace_id}-{secrets.token_hex(8)}-01"
        async with self._client.stream(
            "POST",
            agent.url,
            headers=headers,
            content=body,
            auth=self._outbound.auth(agent.policy),
            deadline_s=call.deadline_s,
        ) as response:
            if not response.is_success:
                content = await self._client.read(response, _ERROR_BODY_BYTES)
                raise _refused(response, content)
            media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media == "text/event-stream":
                results = await self._results(response)
                if streams:
                    return results
                if len(results) != 1:
                    raise _not_the_protocol("a stream came where one answer was expected")
                return results[0]
            result = _result(await self._client.read(response))
            return [result] if streams else result

    async def _results(self, response: httpx.Response) -> list[Any]:
        results: list[Any] = []
        try:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise _not_the_protocol("the stream is packed although that was not offered")
            async for data in server_events(response.aiter_raw(), self._value_bytes):
                if len(results) >= self._most_messages:
                    detail = f"more than {self._most_messages} events (worker.stream_messages)"
                    raise Fault(ProblemType.PAYLOAD_TOO_LARGE, 413, "The agent's answer is too large", detail)
                results.append(_result(data.encode()))
        except EventTooLarge:
            detail = f"more than {self._value_bytes} bytes (limits.value_bytes)"
            raise Fault(ProblemType.PAYLOAD_TOO_LARGE, 413, "The agent's answer is too large", detail) from None
        return results


def _endpoint(endpoint: str | dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    if isinstance(endpoint, str):
        return endpoint, None
    return endpoint["uri"], endpoint.get("authentication")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host.lower(), url.port or {"http": 80, "https": 443}.get(url.scheme)


def _interface(document: dict[str, Any], place: httpx.URL) -> tuple[httpx.URL, str]:
    """Where the card's agent speaks JSON-RPC, and which version; the older one when it speaks both."""
    found: list[tuple[Any, str]] = []
    if "url" in document and document.get("preferredTransport", "JSONRPC") == "JSONRPC":
        found.append((document["url"], "0.3"))
    found += [
        (entry.get("url"), "0.3")
        for entry in _objects(document.get("additionalInterfaces"))
        if entry.get("transport") == "JSONRPC"
    ]
    found += [
        (entry.get("url"), "0.3" if str(entry.get("protocolVersion", "1.0")) < "1" else "1.0")
        for entry in _objects(document.get("supportedInterfaces"))
        if entry.get("protocolBinding") == "JSONRPC"
    ]
    for uri, version in sorted(found, key=lambda entry: entry[1]):
        if isinstance(uri, str):
            try:
                return http_url(str(place.join(uri)), "url"), version
            except (Fault, httpx.InvalidURL):
                raise _bad_card("its url is not an http(s) address") from None
    raise _bad_card("it names no interface for JSON-RPC, the transport that Flint speaks")


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _bad_card(detail: str) -> Fault:
    return Fault(ProblemType.CONFIGURATION, 400, "The agent's card cannot be used", detail)


def _parameters(call: ResolvedCall, arguments: dict[str, Any], version: str) -> dict[str, Any]:
    """The parameters with what the specification asks a runtime to fill in.

    The message's id is made of the idempotency key: an agent recognises a repeat by it.
    """
    parameters: dict[str, Any] = dict(arguments.get("parameters", {}))
    if arguments["method"] not in ("message/send", "message/stream"):
        return parameters
    message = parameters.get("message")
    if isinstance(message, dict):
        known = (
            uuid.uuid5(uuid.NAMESPACE_URL, f"flint:{call.idempotency_key}") if call.idempotency_key else uuid.uuid4()
        )
        filled = {"messageId": str(known), "role": "user" if version == "0.3" else "ROLE_USER"}
        if version == "0.3":
            filled["kind"] = "message"
        parameters["message"] = {**filled, **message}
    return parameters


def _result(body: bytes) -> Any:
    """The result of a JSON-RPC response. Raises Fault for an error and for anything else."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _not_the_protocol("the answer is not JSON") from None
    if not isinstance(document, dict):
        raise _not_the_protocol("the answer is not a JSON-RPC response")
    error = document.get("error")
    if error is not None:
        code = error.get("code") if isinstance(error, dict) else None
        said = str(error.get("message", ""))[:500] if isinstance(error, dict) else ""
        status = _STATUS.get(code, 500) if isinstance(code, int) else 500
        raise Fault(ProblemType.RUNTIME, status, "The agent answered with an error", f"{code}: {said}")
    if "result" not in document:
        raise _not_the_protocol("the answer is not a JSON-RPC response")
    return document["result"]


def _not_the_protocol(detail: str) -> Fault:
    return Fault(ProblemType.COMMUNICATION, 502, "The agent does not speak A2A over JSON-RPC", detail)


def _refused(response: httpx.Response, content: bytes) -> Fault:
    """A refusal by status; a JSON-RPC error in the body tells more."""
    try:
        _result(content)
    except Fault as fault:
        if fault.type == ProblemType.RUNTIME:
            return fault
    status = response.status_code
    type_ = {401: ProblemType.AUTHENTICATION, 403: ProblemType.AUTHORIZATION}.get(status, ProblemType.COMMUNICATION)
    detail = f"POST {public_uri(response.request.url)}"
    return Fault(type_, status, f"HTTP {status}", detail, retry_after_ms(response.headers.get("retry-after", "")))
