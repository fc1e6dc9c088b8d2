"""AsyncAPI over HTTP. Published: once the server has answered with success.

A subscription reads one answer: server-sent events, lines of JSON, or, where it is neither, a single message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.executors.asyncapi_documents import Place
from flint_worker.executors.asyncapi_messages import Inbound, Outbound, Stream, decoded
from flint_worker.executors.client import http_url, public_uri, retry_after_ms
from flint_worker.executors.faults import Fault, invalid
from flint_worker.executors.outbound import Outbound as Network
from flint_worker.executors.server_events import EventTooLarge, server_events

__all__ = ["HttpLink"]

_LINES: Final = frozenset({"application/x-ndjson", "application/jsonl", "application/json-seq"})


class HttpLink:
    """Exchanges of the worker's HTTP client."""

    def __init__(self, settings: Settings, network: Network) -> None:
        self._limit_bytes = settings.limits.value_bytes
        self._network = network

    async def publish(self, place: Place, message: Outbound, policy: Mapping[str, Any] | None) -> dict[str, Any]:
        """Sends it with the binding's method, POST unless told."""
        headers = _headers(message.headers)
        if message.content_type:
            headers.setdefault("content-type", message.content_type)
        if message.key:
            headers.setdefault("idempotency-key", message.key)
        method = str(place.operation_binding.get("method", "POST")).upper()
        answer = await self._network.client.exchange(
            method, _url(place), headers=headers, content=message.body, auth=self._network.auth(policy)
        )
        if not 200 <= answer.status < 300:
            raise _refused(answer.method, answer.url, answer.status, answer.headers)
        return {"statusCode": answer.status}

    @asynccontextmanager
    async def subscribe(self, place: Place, policy: Mapping[str, Any] | None, window: int) -> AsyncIterator[Stream]:
        """The messages of one answer."""
        headers = {"accept": "text/event-stream, application/x-ndjson, */*;q=0.5", "accept-encoding": "identity"}
        method = str(place.operation_binding.get("method", "GET")).upper()
        async with self._network.client.stream(
            method, _url(place), headers=headers, auth=self._network.auth(policy)
        ) as response:
            if not response.is_success:
                raise _refused(method, response.request.url, response.status_code, response.headers)
            media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media == "text/event-stream":
                yield _Stream(self._events(response), media)
            elif media in _LINES:
                yield _Stream(self._lines(response), "application/json")
            else:
                yield _Stream(self._whole(response), media)

    async def _events(self, response: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for data in server_events(response.aiter_raw(), self._limit_bytes):
                yield data.encode()
        except EventTooLarge:
            raise self._too_large() from None

    async def _lines(self, response: httpx.Response) -> AsyncIterator[bytes]:
        begun: list[bytes] = []
        size = 0
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size > self._limit_bytes:
                raise self._too_large()
            begun.append(chunk)
            if b"\n" not in chunk:
                continue
            *lines, rest = b"".join(begun).split(b"\n")
            begun = [rest] if rest else []
            for line in lines:
                if line.strip(b"\x1e\r "):
                    yield line.strip(b"\x1e\r ")
        last = b"".join(begun).strip(b"\x1e\r ")
        if last:
            yield last

    async def _whole(self, response: httpx.Response) -> AsyncIterator[bytes]:
        body = await self._network.client.read(response)
        if body:
            yield body

    def _too_large(self) -> Fault:
        detail = f"more than {self._limit_bytes} bytes (limits.value_bytes)"
        return Fault(ProblemType.PAYLOAD_TOO_LARGE, 413, "The stream is too large", detail)


class _Stream:
    def __init__(self, bodies: AsyncIterator[bytes], content_type: str) -> None:
        self._bodies = bodies
        self._content_type = content_type

    async def next(self) -> Inbound | None:
        body = await anext(self._bodies, None)
        return None if body is None else Inbound(decoded(body, self._content_type), {}, len(body))

    async def drop(self, message: Inbound) -> None:
        """HTTP knows no acknowledgement."""

    async def accept(self) -> None:
        """The same."""


def _url(place: Place) -> httpx.URL:
    scheme = "https" if place.tls else "http"
    host = f"[{place.host}]" if ":" in place.host else place.host
    path = f"{place.path.rstrip('/')}/{place.address.lstrip('/')}"
    return http_url(f"{scheme}://{host}:{place.port}{path}", "the document's server")


def _headers(given: dict[str, str]) -> httpx.Headers:
    headers = httpx.Headers()
    for name, value in given.items():
        if (
            not name
            or not name.isascii()
            or not name.isprintable()
            or any(mark in name for mark in ' :"(),/;<=>?@[]{}')
        ):
            raise invalid(f"/message/headers: {name[:200]!r} cannot be sent")
        if not value.isprintable():
            raise invalid(f"/message/headers/{name}: control characters cannot be sent")
        headers[name] = value
    return headers


def _refused(method: str, url: httpx.URL, status: int, headers: httpx.Headers) -> Fault:
    type_ = {401: ProblemType.AUTHENTICATION, 403: ProblemType.AUTHORIZATION}.get(status, ProblemType.COMMUNICATION)
    detail = f"{method} {public_uri(url)}"
    return Fault(type_, status, f"HTTP {status}", detail, retry_after_ms(headers.get("retry-after", "")))
