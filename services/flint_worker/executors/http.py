"""`http`: one HTTP exchange per call, over connections that all calls of the worker share.

The answer's body is read up to the payload limit and no further. No cookie outlives its call.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final
from urllib.parse import urlencode

import httpcore
import httpx
import orjson

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.addresses import AddressRefused
from flint_worker.executors.arguments import check_arguments, failure, has_controls
from flint_worker.executors.connections import WatchedBackend, watched

__all__ = ["HttpExecutor"]

_LONGEST_S: Final = 300.0
"""An exchange ends after this long when the step has no timeout of its own."""
_TIMEOUT: Final = httpx.Timeout(connect=10.0, read=120.0, write=60.0, pool=60.0)
_LANES: Final = 64
_LANE_CONNECTIONS: Final = 16
_IDLE_S: Final = 4.0
"""Many servers close a connection that was idle for 5 s: ours goes first."""
_REDIRECTS: Final = 10
_LONGEST_RETRY_AFTER_MS: Final = 24 * 3_600_000
_FRAMING: Final = frozenset({"connection", "content-length", "keep-alive", "te", "transfer-encoding", "upgrade"})
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_TRACE: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")


class _Lane(httpx.AsyncHTTPTransport):
    """httpx's transport on a connection pool that checks addresses.

    httpx takes no network backend itself, so the pool it made is replaced by one that has ours.
    """

    def __init__(self, context: ssl.SSLContext, allow_private: bool) -> None:
        super().__init__(verify=context, http2=True)
        self.busy = 0
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=_LANE_CONNECTIONS,
            max_keepalive_connections=_LANE_CONNECTIONS,
            keepalive_expiry=_IDLE_S,
            http1=True,
            http2=True,
            network_backend=WatchedBackend(allow_private),
        )


class _Transport(httpx.AsyncBaseTransport):
    """Many small pools instead of a large one.

    httpcore looks at every connection and every waiting request of a pool whenever one begins or ends: with some
    hundred exchanges at once that took all of a worker's time, its heartbeats with it. A pool that is not full is used
    before the next one, so connections are reused as in one pool.
    """

    def __init__(self, allow_private: bool) -> None:
        self._context = httpx.create_ssl_context()
        self._allow_private = allow_private
        self._lanes: list[_Lane] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends it over the first pool with room."""
        lane = self._lane()
        lane.busy += 1
        try:
            response = await lane.handle_async_request(request)
        except BaseException:
            lane.busy -= 1
            raise
        if not isinstance(response.stream, httpx.AsyncByteStream):
            raise TypeError("the transport answered without a stream")
        response.stream = _CountedStream(response.stream, lane)
        return response

    def _lane(self) -> _Lane:
        for lane in self._lanes:
            if lane.busy < _LANE_CONNECTIONS:
                return lane
        if len(self._lanes) < _LANES:
            self._lanes.append(_Lane(self._context, self._allow_private))
            return self._lanes[-1]
        return min(self._lanes, key=lambda lane: lane.busy)

    async def aclose(self) -> None:
        """Closes the connections."""
        for lane in self._lanes:
            await lane.aclose()


class _CountedStream(httpx.AsyncByteStream):
    """A body; its lane is free when it is closed."""

    def __init__(self, stream: httpx.AsyncByteStream, lane: _Lane) -> None:
        self._stream = stream
        self._lane: _Lane | None = lane

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        """Closes it; more than once is harmless."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.busy -= 1
        await self._stream.aclose()


class HttpExecutor:
    """The function `http`."""

    unfinished = 0  # nothing outlives its call

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.limits.payload_bytes
        self._client = httpx.AsyncClient(
            transport=_Transport(settings.worker.allow_private_addresses),
            timeout=_TIMEOUT,
            max_redirects=_REDIRECTS,
            trust_env=False,  # a proxy would connect where it likes
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"user-agent": "flint", "accept": "*/*", "accept-encoding": "identity"},
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def execute(self, call: ResolvedCall) -> Any:
        """The answer as `output` asks for it. Raises ExecutionFailed."""
        arguments = check_arguments(call)
        limit_s = _LONGEST_S if call.deadline_s is None else min(call.deadline_s, _LONGEST_S)
        try:
            async with asyncio.timeout(limit_s):
                return await self._exchange(call, arguments)
        except (TimeoutError, httpx.TimeoutException):
            raise failure(call, ProblemType.TIMEOUT, 408, "The HTTP call took too long") from None
        except AddressRefused:
            detail = "the host has no public address; worker.allow_private_addresses permits others"
            raise failure(call, ProblemType.AUTHORIZATION, 403, "The address is not permitted", detail) from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError):
            raise failure(call, ProblemType.VALIDATION, 400, "The HTTP request is not well-formed") from None
        except httpx.TooManyRedirects:
            raise failure(call, ProblemType.COMMUNICATION, 500, "Too many redirects") from None
        except httpx.RequestError as error:
            detail = f"{type(error).__name__}: {error}"[:300]
            raise failure(call, ProblemType.COMMUNICATION, 500, "The HTTP call failed", detail) from None

    async def _exchange(self, call: ResolvedCall, arguments: dict[str, Any]) -> Any:
        request = self._request(call, arguments)
        endpoint = arguments["endpoint"]
        auth = _authentication(endpoint.get("authentication", {}) if isinstance(endpoint, dict) else {})
        follow = bool(arguments.get("redirect", False))
        response = await self._send(request, auth, follow)
        try:
            if not response.is_success:
                raise _refused(call, response)
            body = await self._read(call, response)
        finally:
            await response.aclose()
        return _output(call, arguments.get("output", "content"), response, body)

    async def _send(self, request: httpx.Request, auth: httpx.Auth | None, follow: bool) -> httpx.Response:
        """The answer's head. A request that met a connection closed meanwhile is sent once more, with the same key."""
        with watched() as exchange:
            try:
                return await self._client.send(request, stream=True, auth=auth, follow_redirects=follow)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if not exchange.met_a_closed_connection:
                    raise
        return await self._client.send(request, stream=True, auth=auth, follow_redirects=follow)

    def _request(self, call: ResolvedCall, arguments: dict[str, Any]) -> httpx.Request:
        endpoint = arguments["endpoint"]
        url = httpx.URL(endpoint if isinstance(endpoint, str) else endpoint["uri"])
        if url.scheme not in ("http", "https") or not url.host:
            raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", "/endpoint: not an http(s) address")
        pairs = [
            (name, _text(item))
            for name, value in arguments.get("query", {}).items()
            for item in (value if isinstance(value, list) else [value])
            if item is not None
        ]
        if pairs:
            url = url.copy_with(params=[*url.params.multi_items(), *pairs])
        headers = _headers(call, arguments.get("headers", {}))
        content = _content(arguments.get("body"), headers)
        return self._client.build_request(arguments["method"].upper(), url, headers=headers, content=content)

    async def _read(self, call: ResolvedCall, response: httpx.Response) -> bytes:
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.aiter_bytes():
            size += len(chunk)
            if size > self._limit:
                detail = f"the body has more than {self._limit} bytes (limits.payload_bytes)"
                raise failure(call, ProblemType.PAYLOAD_TOO_LARGE, 413, "The HTTP answer is too large", detail)
            chunks.append(chunk)
        return b"".join(chunks)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _headers(call: ResolvedCall, given: dict[str, Any]) -> httpx.Headers:
    headers = httpx.Headers()
    for name, value in given.items():
        if value is None:
            continue
        text = _text(value)
        if _HEADER.fullmatch(name) is None or name.lower() in _FRAMING or has_controls(text.replace("\t", " ")):
            raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", f"/headers: {name!r} cannot be sent")
        headers[name] = text
    if call.idempotency_key:
        headers.setdefault("Idempotency-Key", call.idempotency_key)
    if _TRACE.fullmatch(call.trace_id):
        headers.setdefault("traceparent", f"00-{call.trace_id}-{secrets.token_hex(8)}-01")
    return headers


def _content(body: Any, headers: httpx.Headers) -> bytes | None:
    if body is None:
        return None
    if isinstance(body, str):
        headers.setdefault("content-type", "text/plain; charset=utf-8")
        return body.encode()
    if isinstance(body, dict) and headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        pairs = [
            (name, item) for name, value in body.items() for item in (value if isinstance(value, list) else [value])
        ]
        return urlencode([(name, _text(item)) for name, item in pairs if item is not None]).encode()
    headers.setdefault("content-type", "application/json")
    return orjson.dumps(body)


class _BearerAuth(httpx.Auth):
    """A token in the Authorization header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Any:
        """Adds the header; httpx drops it when a redirect leads to another origin."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def _authentication(given: dict[str, Any]) -> httpx.Auth | None:
    if basic := given.get("basic"):
        return httpx.BasicAuth(basic["username"], basic["password"])
    if digest := given.get("digest"):
        return httpx.DigestAuth(digest["username"], digest["password"])
    if bearer := given.get("bearer"):
        return _BearerAuth(bearer["token"])
    return None


def _refused(call: ResolvedCall, response: httpx.Response) -> ExecutionFailed:
    title = f"HTTP {response.status_code} {response.reason_phrase}".rstrip()
    detail = f"{response.request.method} {_public_uri(response.request.url)}"
    if response.is_redirect:
        detail += " answered with a redirect; set `redirect: true` to follow it"
    retry_after_ms = _retry_after_ms(response.headers.get("retry-after", ""))
    return failure(call, ProblemType.COMMUNICATION, response.status_code, title, detail, retry_after_ms)


def _public_uri(url: httpx.URL) -> str:
    """An address without what may be secret in it: user, password, query and fragment."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


def _retry_after_ms(text: str) -> int | None:
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:9]) * 1000, _LONGEST_RETRY_AFTER_MS)
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    wait_ms = (moment - datetime.now(UTC)).total_seconds() * 1000
    return min(max(int(wait_ms), 0), _LONGEST_RETRY_AFTER_MS)


def _output(call: ResolvedCall, wanted: str, response: httpx.Response, body: bytes) -> Any:
    if wanted == "raw":
        return base64.b64encode(body).decode() if body else None
    content = _parsed(call, response, body)
    if wanted == "content":
        return content
    return {
        "request": {"method": response.request.method, "uri": _public_uri(response.request.url)},
        "statusCode": response.status_code,
        "headers": {name: value for name, value in response.headers.items() if name != "set-cookie"},
        "content": content,
    }


def _parsed(call: ResolvedCall, response: httpx.Response, body: bytes) -> Any:
    """JSON where the answer says so (or says nothing and is JSON), text where it is text, else base64."""
    if not body:
        return None
    media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "application/json" or media.endswith("+json"):
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            title = "The HTTP answer is not the JSON it claims to be"
            raise failure(call, ProblemType.COMMUNICATION, 502, title) from None
    if not media:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            media = "text/plain"
    try:
        text = body.decode(response.charset_encoding or "utf-8")
    except (UnicodeDecodeError, LookupError):
        return base64.b64encode(body).decode()
    is_text = media.startswith("text/") or media.endswith("+xml") or media in _TEXT_MEDIA
    return text if is_text else base64.b64encode(body).decode()


_TEXT_MEDIA: Final = frozenset(
    {"application/xml", "application/yaml", "application/javascript", "application/x-www-form-urlencoded"}
)
