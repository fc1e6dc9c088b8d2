"""The one HTTP client of a worker: what every executor and every fetch of a token or document goes through.

It adds to httpx: connections to checked addresses only, the configured proxy, trust and client certificates (`routes`),
redirects whose every hop is checked and which take no credentials to another origin, a bound on what is sent, read and
unpacked, and failures that say what went wrong (`faults`). No cookie outlives its request.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import httpcore
import httpx

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.executors.addresses import AddressRefused, NameNotResolved
from flint_worker.executors.faults import Fault, invalid
from flint_worker.executors.lanes import Transport
from flint_worker.executors.routes import Routes
from flint_worker.executors.unpacking import Unpacker

__all__ = ["Answer", "HttpClient", "http_url", "public_uri", "retry_after_ms"]

_REDIRECTS: Final = 10
_WRITE_S: Final = 60.0
_POOL_S: Final = 60.0
_LONGEST_RETRY_AFTER_MS: Final = 24 * 3_600_000
_CROSSES_ORIGINS: Final = frozenset(
    {"accept", "accept-encoding", "accept-language", "content-language", "content-length", "content-type", "host"}
    | {"idempotency-key", "traceparent", "transfer-encoding", "user-agent"}
)
"""Whatever else a request carries may be a credential (`X-Api-Key`), and stays with the origin it was meant for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was read to its end. `method` and `url` are those of the last hop."""

    status: int
    reason: str
    headers: httpx.Headers
    body: bytes
    method: str
    url: httpx.URL


class HttpClient:
    """One for all executors of a worker; belongs to one event loop. Many exchanges at once."""

    def __init__(self, settings: Settings) -> None:
        worker = settings.worker
        self._limit = settings.limits.value_bytes
        self._total_s = worker.http_total_s
        self._transport = Transport(Routes(settings))
        self._timeout = httpx.Timeout(
            connect=worker.http_connect_s, read=worker.http_read_s, write=_WRITE_S, pool=_POOL_S
        )
        self._client = self.borrow()

    def borrow(self, **options: Any) -> httpx.AsyncClient:
        """A plain httpx client over the same guarded connections, for libraries that want one.

        Closing it leaves the connections open. It knows no limits of size: whoever reads must keep them.
        """
        options.setdefault("timeout", self._timeout)
        return httpx.AsyncClient(
            transport=_Borrowed(self._transport),
            trust_env=False,
            max_redirects=_REDIRECTS,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"user-agent": "flint", "accept": "*/*", "accept-encoding": "gzip, deflate"},
            **options,
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.aclose()

    async def exchange(
        self,
        method: str,
        url: httpx.URL,
        *,
        headers: httpx.Headers | dict[str, str] | None = None,
        content: bytes | None = None,
        auth: httpx.Auth | None = None,
        redirect: bool = False,
        deadline_s: float | None = None,
        limit_bytes: int | None = None,
    ) -> Answer:
        """One exchange, whatever its status. Takes at most `deadline_s`, and never more than `worker.http_total_s`.

        `auth` speaks for the first origin only. `limit_bytes` bounds the answer's body (limits.value_bytes unless
        told). Raises Fault; what `auth` raises passes through.
        """
        async with self.stream(
            method, url, headers=headers, content=content, auth=auth, redirect=redirect, deadline_s=deadline_s
        ) as response:
            body = await self.read(response, limit_bytes)
            return Answer(
                response.status_code,
                response.reason_phrase,
                response.headers,
                body,
                response.request.method,
                response.request.url,
            )

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: httpx.URL,
        *,
        headers: httpx.Headers | dict[str, str] | None = None,
        content: bytes | None = None,
        auth: httpx.Auth | None = None,
        redirect: bool = False,
        deadline_s: float | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The same with the answer's body unread: read it with `read`, or raw within the block, which has the deadline.

        A body left unread is abandoned, its connection (HTTP/2: its stream) with it.
        """
        if content is not None and len(content) > self._limit:
            detail = f"the body has {len(content)} bytes, more than {self._limit} (limits.value_bytes)"
            raise Fault(ProblemType.PAYLOAD_TOO_LARGE, 413, "The HTTP request is too large", detail)
        total_s = self._total_s if deadline_s is None else min(deadline_s, self._total_s)
        with _named(method, url, total_s):
            async with asyncio.timeout(total_s):
                request = self._client.build_request(method, url, headers=headers, content=content)
                response = await self._follow(request, auth, redirect)
                try:
                    yield response
                finally:
                    await response.aclose()

    async def read(self, response: httpx.Response, limit_bytes: int | None = None) -> bytes:
        """An answer's body, unpacked, up to the limit and no further. Raises Fault."""
        limit = self._limit if limit_bytes is None else limit_bytes
        declared = response.headers.get("content-length", "")
        unpacker = Unpacker(response.headers.get("content-encoding", ""))
        if unpacker.plain and declared.isascii() and declared.isdigit() and int(declared[:18]) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        async for packed in response.aiter_raw():
            for chunk in unpacker.feed(packed):
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
        unpacker.end()
        return b"".join(chunks)

    async def _follow(self, request: httpx.Request, auth: httpx.Auth | None, redirect: bool) -> httpx.Response:
        """The head of the answer that counts: the last one, when redirects are followed."""
        for _ in range(_REDIRECTS + 1):
            response = await self._client.send(request, stream=True, auth=auth)
            following = response.next_request
            if not redirect or following is None:
                return response
            await response.aclose()
            if following.url.scheme not in ("http", "https"):
                raise Fault(ProblemType.COMMUNICATION, 502, "The HTTP server redirects to what is not HTTP")
            if _origin(following.url) != _origin(request.url):
                auth = None
                for name in [name for name in following.headers if name not in _CROSSES_ORIGINS]:
                    del following.headers[name]
            elif auth is not None:
                following.headers.pop("authorization", None)
            request = following
        detail = f"more than {_REDIRECTS} of them"
        raise Fault(ProblemType.COMMUNICATION, 508, "The HTTP server redirects without end", detail)


class _Borrowed(httpx.AsyncBaseTransport):
    """The worker's transport in the hands of a client that may be closed before it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Nothing: the connections belong to the worker."""


def http_url(text: str, place: str = "/endpoint") -> httpx.URL:
    """An http(s) address. Raises Fault (validation) for anything else."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError):
        raise invalid(f"{place}: not an http(s) address") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise invalid(f"{place}: not an http(s) address")
    return url


def public_uri(url: httpx.URL) -> str:
    """An address without what may be secret in it: user, password, query and fragment."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


def retry_after_ms(text: str) -> int | None:
    """What a Retry-After header asks for, at most a day; None for none and for nonsense."""
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


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host.lower(), url.port or {"http": 80, "https": 443}.get(url.scheme)


def _too_large(limit: int) -> Fault:
    detail = f"the body has more than {limit} bytes"
    return Fault(ProblemType.PAYLOAD_TOO_LARGE, 413, "The HTTP answer is too large", detail)


@contextmanager
def _named(method: str, url: httpx.URL, total_s: float) -> Iterator[None]:
    """Makes Faults of what httpx and the network raise."""
    where = f"{method} {public_uri(url)}"
    try:
        yield
    except httpx.ConnectTimeout:
        raise Fault(ProblemType.TIMEOUT, 408, "No connection was made in time", where) from None
    except httpx.ReadTimeout:
        raise Fault(ProblemType.TIMEOUT, 408, "The HTTP server was silent for too long", where) from None
    except (TimeoutError, httpx.TimeoutException):
        detail = f"{where} did not end within {total_s:g} s"
        raise Fault(ProblemType.TIMEOUT, 408, "The HTTP call took too long", detail) from None
    except AddressRefused:
        detail = "the host has no public address; worker.allow_private_addresses permits others"
        raise Fault(ProblemType.AUTHORIZATION, 403, "The address is not permitted", detail) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeError):
        raise Fault(ProblemType.VALIDATION, 400, "The HTTP request is not well-formed", where) from None
    except httpx.ProxyError as error:
        detail = f"{where}: {_words(error)}"
        raise Fault(ProblemType.COMMUNICATION, 502, "The proxy refuses the connection", detail) from None
    except httpx.ConnectError as error:
        title, reason = _connect_reason(error)
        raise Fault(ProblemType.COMMUNICATION, 500, title, f"{where}{reason}") from None
    except httpx.RemoteProtocolError as error:
        title = "The HTTP server closed the connection or does not speak HTTP"
        raise Fault(ProblemType.COMMUNICATION, 502, title, f"{where}: {_words(error)}") from None
    except (httpx.RequestError, httpcore.ConnectionNotAvailable, ssl.SSLError) as error:
        detail = f"{where}: {type(error).__name__}"
        raise Fault(ProblemType.COMMUNICATION, 500, "The HTTP call failed", detail) from None


def _connect_reason(error: BaseException) -> tuple[str, str]:
    """What kept a connection from being made, found among the causes."""
    cause: BaseException | None = error
    for _ in range(10):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "The server's certificate is not trusted", f": {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "No TLS connection could be made", f": {cause.reason or type(cause).__name__}"
        if isinstance(cause, NameNotResolved | socket.gaierror | UnicodeError):
            return "The host's name cannot be resolved", ""
        if isinstance(cause, ConnectionRefusedError):
            return "The connection was refused", ""
        if cause is None:
            break
        cause = cause.__cause__ or cause.__context__
    return "No connection could be made", ""


def _words(error: Exception) -> str:
    """An exception's own words, as far as they are plain text."""
    return re.sub(r"[^ -~]", "?", str(error))[:200]
