"""MCP over streamable HTTP: the official SDK's transport on the worker's own HTTP client.

The SDK brings an HTTP library of its own (httpx2). Its requests are handed to the worker's client here, so that checked
addresses, proxy, trust, credentials and limits hold for them too. What went wrong is remembered: the SDK tells a caller
only that the connection ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import httpx2
from mcp.client.streamable_http import streamable_http_client

from flint_core.problems import ProblemType
from flint_worker.executors.client import public_uri, retry_after_ms
from flint_worker.executors.faults import Fault
from flint_worker.executors.outbound import Outbound
from flint_worker.executors.unpacking import Unpacker

__all__ = ["HttpServer"]

_END_S: Final = 2.0
_SESSION: Final = "mcp-session-id"
_OF_THE_WAY: Final = frozenset({"content-encoding", "content-length"})
"""Headers of the body as it travelled: a server that packs although it was not asked to is unpacked here, bounded."""


class HttpServer(httpx2.AsyncBaseTransport):
    """One server, for one call. `fault`: why its HTTP failed, when it did."""

    def __init__(
        self, outbound: Outbound, url: httpx.URL, headers: dict[str, str], policy: Any, limit_bytes: int
    ) -> None:
        self.fault: Fault | None = None
        self._outbound = outbound
        self._url = url
        self._headers = headers
        self._auth = outbound.auth(policy)
        self._limit_bytes = limit_bytes
        self._read_bytes = 0
        self._session: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """The SDK's streams. A session that the server began is ended with the block."""
        try:
            async with (
                httpx2.AsyncClient(transport=self, trust_env=False, timeout=None) as client,
                streamable_http_client(
                    str(self._url),
                    http_client=client,
                    terminate_on_close=False,
                    max_sse_event_size=self._limit_bytes,
                ) as streams,
            ):
                yield streams
        finally:
            await self._end_session()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends it through the worker's client."""
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
        headers.update(self._headers)
        headers["accept-encoding"] = "identity"
        own = httpx.Request(request.method, str(request.url), headers=headers, content=await request.aread())
        stack = contextlib.AsyncExitStack()
        try:
            response = await stack.enter_async_context(
                self._outbound.client.stream(
                    own.method, own.url, headers=own.headers, content=own.content, auth=self._auth
                )
            )
        except Fault as fault:
            self.fault = self.fault or fault
            raise httpx2.ConnectError(fault.title, request=request) from None
        try:
            unpacker = Unpacker(response.headers.get("content-encoding", ""))
        except Fault as fault:
            self.fault = self.fault or fault
            await stack.aclose()
            raise httpx2.ReadError(fault.title, request=request) from None
        if request.method == "POST" and not response.is_success:
            self.fault = self.fault or _refused(response)
        if session := response.headers.get(_SESSION):
            self._session = {
                name: value
                for name, value in headers.items()
                if name.lower() not in ("content-type", "accept", _SESSION)
            } | {_SESSION: session}
        return httpx2.Response(
            response.status_code,
            headers=[pair for pair in response.headers.multi_items() if pair[0].lower() not in _OF_THE_WAY],
            stream=_Body(self, response, stack, unpacker),
            request=request,
        )

    def took(self, size: int) -> None:
        """Counts what was read. Raises httpx2.ReadError beyond the limit."""
        self._read_bytes += size
        if self._read_bytes > self._limit_bytes:
            detail = f"more than {self._limit_bytes} bytes (limits.value_bytes)"
            title = "The MCP server's answer is too large"
            self.fault = self.fault or Fault(ProblemType.PAYLOAD_TOO_LARGE, 413, title, detail)
            raise httpx2.ReadError(title)

    async def _end_session(self) -> None:
        if not self._session:
            return
        with contextlib.suppress(Fault):  # a courtesy: the server forgets idle sessions by itself
            await self._outbound.client.exchange(
                "DELETE", self._url, headers=self._session, auth=self._auth, deadline_s=_END_S, limit_bytes=65_536
            )


class _Body(httpx2.AsyncByteStream):
    """An answer's body on its way from one library to the other."""

    def __init__(
        self, server: HttpServer, response: httpx.Response, stack: contextlib.AsyncExitStack, unpacker: Unpacker
    ) -> None:
        self._server = server
        self._unpacker = unpacker
        self._response = response
        self._stack = stack

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for packed in self._response.aiter_raw():
                for chunk in self._unpacker.feed(packed):
                    self._server.took(len(chunk))
                    yield chunk
            self._unpacker.end()
        except Fault as fault:
            self._server.fault = self._server.fault or fault
            raise httpx2.ReadError(fault.title) from None
        except httpx.HTTPError as error:
            raise httpx2.ReadError(type(error).__name__) from None

    async def aclose(self) -> None:
        """Gives the connection back."""
        await self._response.aclose()
        with contextlib.suppress(Fault, TimeoutError):
            await self._stack.aclose()


def _refused(response: httpx.Response) -> Fault:
    status = response.status_code
    type_ = {401: ProblemType.AUTHENTICATION, 403: ProblemType.AUTHORIZATION}.get(status, ProblemType.COMMUNICATION)
    detail = f"{response.request.method} {public_uri(response.request.url)}"
    if response.is_redirect:
        detail += " answered with a redirect"
    return Fault(type_, status, f"HTTP {status}", detail, retry_after_ms(response.headers.get("retry-after", "")))
