"""`mcp`: one request to a server of the Model Context Protocol per call, by the official SDK.

Each call is a session of its own: connect, `initialize`, the request, the end. Nothing of a server stays in the worker
between calls, so a run may go on anywhere.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError

from flint_core.durations import DurationError, parse_duration
from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.executors import ResolvedCall
from flint_worker.executors.arguments import check_arguments, has_controls
from flint_worker.executors.client import http_url
from flint_worker.executors.faults import Fault, invalid
from flint_worker.executors.outbound import Outbound

__all__ = ["McpExecutor"]

_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_KEPT: Final = frozenset({"content-length", "content-type", "host", "mcp-session-id", "transfer-encoding"})
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
_TRACE: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_DEFAULT_VERSION: Final = "2025-06-18"
_ANSWER: Final = TypeAdapter(dict[str, Any])
_STATUS: Final = {-32700: 400, -32600: 400, -32601: 501, -32602: 400, -32002: 404}
"""HTTP-like statuses of JSON-RPC's and MCP's codes; what is missing is 500."""


class McpExecutor:
    """The function `mcp`."""

    unfinished = 0  # nothing outlives its call

    def __init__(self, settings: Settings, outbound: Outbound) -> None:
        self._outbound = outbound
        self._commands = tuple(settings.worker.mcp_commands)
        self._limit_bytes = settings.limits.value_bytes
        self._longest_s = settings.worker.http_total_s

    async def close(self) -> None:
        """Nothing of its own: the connections are the client's."""

    async def execute(self, call: ResolvedCall) -> Any:
        """The method's result. Raises ExecutionFailed."""
        arguments = check_arguments(call)
        try:
            limit_s = self._limit_s(call, arguments)
            server = self._server(arguments["transport"])
            try:
                async with asyncio.timeout(limit_s):
                    outcome = await self._session(call, arguments, server)
            except TimeoutError:
                raise Fault(
                    ProblemType.TIMEOUT, 408, "The MCP call took too long", f"more than {limit_s:g} s"
                ) from None
            if isinstance(outcome, Fault):
                raise outcome
            return outcome
        except Fault as fault:
            raise fault.of(call) from None

    def _limit_s(self, call: ResolvedCall, arguments: dict[str, Any]) -> float:
        limit_s = self._longest_s if call.deadline_s is None else min(call.deadline_s, self._longest_s)
        if "timeout" not in arguments:
            return limit_s
        try:
            length_ms = parse_duration(arguments["timeout"]).length_ms(int(time.time() * 1000))
        except DurationError as error:
            raise invalid(f"/timeout: {error}") from None
        return min(limit_s, length_ms / 1000)

    def _server(self, transport: dict[str, Any]) -> Any:
        # The SDK takes half a second to import: only workers that call MCP pay for it.
        if "http" in transport:
            from flint_worker.executors.mcp_http import HttpServer  # noqa: PLC0415

            endpoint = transport["http"]["endpoint"]
            uri, policy = (
                (endpoint, None) if isinstance(endpoint, str) else (endpoint["uri"], endpoint.get("authentication"))
            )
            headers = _headers(transport["http"].get("headers", {}))
            url = http_url(uri, "/transport/http/endpoint")
            return HttpServer(self._outbound, url, headers, policy, self._limit_bytes)
        from flint_worker.executors.mcp_stdio import StdioServer  # noqa: PLC0415

        given = transport["stdio"]
        return StdioServer(
            self._commands,
            given["command"],
            _words(given.get("arguments", [])),
            _environment(given.get("environment", {})),
            self._limit_bytes,
        )

    async def _session(self, call: ResolvedCall, arguments: dict[str, Any], server: Any) -> Any:
        """The result, or what went wrong as a value: what is raised here would come out wrapped in groups."""
        from mcp import ClientSession  # noqa: PLC0415
        from mcp.shared.exceptions import MCPError  # noqa: PLC0415
        from mcp_types import Implementation  # noqa: PLC0415

        client = arguments.get("client", {"name": "flint", "version": "1"})
        outcome: Any = None
        try:
            async with (
                server.connect() as (read, write),
                ClientSession(read, write, client_info=Implementation(**client)) as session,
            ):
                try:
                    outcome = await _ask(session, call, arguments)
                except MCPError as error:
                    outcome = server.fault or _refused(error.code, error.message)
                except ValidationError as error:
                    outcome = _not_the_protocol(f"its answer does not fit the protocol ({error.error_count()} places)")
                except Fault as fault:
                    outcome = fault
        except* Exception as group:
            # Of the transport's tasks; whatever ended them has told the session, or left its mark on the server.
            if outcome is None:
                outcome = server.fault or _first_fault(group) or _not_the_protocol("the connection ended")
        return outcome


async def _ask(session: Any, call: ResolvedCall, arguments: dict[str, Any]) -> dict[str, Any]:
    from mcp_types import (  # noqa: PLC0415
        ClientCapabilities,
        InitializedNotification,
        InitializeRequest,
        InitializeRequestParams,
        InitializeResult,
        Request,
    )
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS  # noqa: PLC0415

    client = arguments.get("client", {"name": "flint", "version": "1"})
    begun = await session.send_request(
        InitializeRequest(
            params=InitializeRequestParams(
                protocol_version=arguments.get("protocolVersion", _DEFAULT_VERSION),
                capabilities=ClientCapabilities(),
                client_info=client,
            )
        ),
        InitializeResult,
    )
    if begun.protocol_version not in HANDSHAKE_PROTOCOL_VERSIONS:
        raise _not_the_protocol(f"it speaks version {str(begun.protocol_version)[:40]} only")
    session.adopt(begun)
    await session.send_notification(InitializedNotification())
    method = arguments["method"]
    parameters = dict(arguments.get("parameters", {}))
    if method == "tools/call":
        parameters["_meta"] = {**_marks(call), **(parameters.get("_meta") or {})}
    answer: dict[str, Any] = await session.send_request(
        Request[dict[str, Any] | None, str](method=method, params=parameters or None), _ANSWER
    )
    if method == "tools/call" and answer.get("isError"):
        raise Fault(ProblemType.RUNTIME, 500, "The tool failed", _text_of(answer.get("content")))
    return answer


def _marks(call: ResolvedCall) -> dict[str, str]:
    """What tells a tool that a call is a repeat, and where it belongs."""
    marks = {}
    if call.idempotency_key:
        marks["flint.dev/idempotency-key"] = call.idempotency_key
    if _TRACE.fullmatch(call.trace_id):
        marks["traceparent"] = f"00-{call.trace_id}-{secrets.token_hex(8)}-01"
    return marks


def _text_of(content: Any) -> str:
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\n".join(texts)[:1000]


def _refused(code: int, message: str) -> Fault:
    status = _STATUS.get(code, 500)
    return Fault(ProblemType.RUNTIME, status, "The MCP server answered with an error", f"{code}: {message[:500]}")


def _not_the_protocol(detail: str) -> Fault:
    return Fault(ProblemType.COMMUNICATION, 502, "The server does not speak MCP as expected", detail)


def _first_fault(group: BaseExceptionGroup[Any]) -> Fault | None:
    for error in group.exceptions:
        found = _first_fault(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, Fault):
            return found
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _headers(given: dict[str, Any]) -> dict[str, str]:
    headers = {}
    for name, value in given.items():
        if value is None:
            continue
        text = _text(value)
        if _HEADER.fullmatch(name) is None or name.lower() in _KEPT or has_controls(text) or not text.isascii():
            raise invalid(f"/transport/http/headers: {name[:200]!r} cannot be sent")
        headers[name.lower()] = text
    return headers


def _words(given: list[str]) -> list[str]:
    if any("\0" in word for word in given):
        raise invalid("/transport/stdio/arguments: a zero byte cannot be passed")
    return given


def _environment(given: dict[str, Any]) -> dict[str, str]:
    environment = {name: _text(value) for name, value in given.items() if value is not None}
    for name, value in environment.items():
        if _VARIABLE.fullmatch(name) is None or "\0" in value:
            raise invalid(f"/transport/stdio/environment: {name[:200]!r} cannot be set")
    return environment
