"""The http executor against an outside that is large, hostile, behind proxies, or speaks HTTP/2 and TLS."""

from __future__ import annotations

import asyncio
import base64
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from flint_core.problems import ProblemType
from flint_ops.config import CertificateSettings, LimitSettings, Settings, WorkerSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.http import HttpExecutor
from flint_worker.executors.routes import Host, names_host
from support.eventually import eventually
from support.web import Trust, http2_server, proxy_server, raw_server, trust, web_server

LIMIT = 100_000


async def seen(request: Request) -> Response:
    body = await request.body()
    return JSONResponse(
        {
            "version": request.scope["http_version"],
            "path": request.url.path,
            "query": request.url.query,
            "headers": [[name, value] for name, value in request.headers.items()],
            "body": base64.b64encode(body).decode(),
            "peer": request.client.port if request.client else None,
        }
    )


async def endless(request: Request) -> Response:
    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000
            await asyncio.sleep(0)  # else nobody in this event loop would hear that the client is gone

    return StreamingResponse(body())


async def elsewhere(request: Request) -> Response:
    return RedirectResponse(request.query_params["to"], int(request.query_params.get("code", "307")))


async def unchanged(request: Request) -> Response:
    return Response(status_code=304)


APP = Starlette(
    routes=[
        Route("/endless", endless),
        Route("/elsewhere", elsewhere, methods=["GET", "POST"]),
        Route("/unchanged", unchanged),
        Route("/{path:path}", seen, methods=["GET", "POST", "PUT"]),
    ]
)


def settings(certificates: dict[str, CertificateSettings] | None = None, **worker: Any) -> Settings:
    worker.setdefault("allow_private_addresses", True)
    return Settings(
        worker=WorkerSettings(**worker),
        limits=LimitSettings(value_bytes=LIMIT),
        certificates=certificates or {},
    )


@asynccontextmanager
async def executor_for(given: Settings) -> AsyncIterator[HttpExecutor]:
    executor = HttpExecutor(given)
    try:
        yield executor
    finally:
        await executor.close()


@pytest.fixture
async def executor() -> AsyncIterator[HttpExecutor]:
    async with executor_for(settings()) as made:
        yield made


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with web_server(APP) as address:
        yield address


@pytest.fixture(scope="module")
def authority() -> Iterator[Trust]:
    with trust() as made:
        yield made


def call(deadline_s: float | None = 30, **arguments: Any) -> ResolvedCall:
    arguments.setdefault("method", "get")
    return ResolvedCall("http", arguments, "key-1", "/do/0/x", "run", "", deadline_s)


async def failed(executor: HttpExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    return raised.value


def header(answer: Any, name: str) -> list[str]:
    return [value for known, value in answer["headers"] if known == name]


# --- what is sent


async def test_bytes_forms_and_parts(executor: HttpExecutor, url: str) -> None:
    async def sent(content_type: str, body: Any) -> tuple[str, bytes]:
        headers = {"Content-Type": content_type}
        answer = await executor.execute(call(method="post", endpoint=f"{url}/x", headers=headers, body=body))
        return header(answer, "content-type")[0], base64.b64decode(answer["body"])

    raw = bytes(range(256))
    assert (await sent("application/octet-stream", {"base64": base64.b64encode(raw).decode()}))[1] == raw
    assert (await sent("application/json", {"base64": "eA=="}))[1] == b'{"base64":"eA=="}'
    assert (await sent("application/x-www-form-urlencoded", {"a": ["1", None, "ü&"], "b": True}))[1] == (
        b"a=1&a=%C3%BC%26&b=true"
    )
    media, body = await sent(
        "multipart/form-data",
        {
            "name": "Ada",
            "tags": ["x", "y"],
            "file": {"base64": base64.b64encode(raw).decode(), "filename": 'a"b.bin', "content_type": "image/png"},
            "data": {"json": {"a": 1}},
        },
    )
    boundary = media.partition("boundary=")[2].encode()
    parts = body.split(b"--" + boundary)
    assert parts[1] == b'\r\nContent-Disposition: form-data; name="name"\r\n\r\nAda\r\n'
    assert parts[4] == (
        b'\r\nContent-Disposition: form-data; name="file"; filename="a%22b.bin"\r\nContent-Type: image/png\r\n\r\n'
        + raw
        + b"\r\n"
    )
    assert b"application/json" in parts[5]
    assert parts[-1] == b"--\r\n"


@pytest.mark.parametrize(
    "body",
    [{"f": {"filename": "x"}}, {"f": {"text": "x", "json": 1}}, {"f": {"base64": "?"}}, {"f": {"text": "x", "z": 1}}],
)
async def test_parts_that_are_none(executor: HttpExecutor, url: str, body: Any) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    error = await failed(executor, call(method="post", endpoint=url, headers=headers, body=body))
    assert (error.problem.type, error.problem.status) == (ProblemType.VALIDATION, 400)


async def test_headers_that_repeat(executor: HttpExecutor, url: str) -> None:
    answer = await executor.execute(call(endpoint=f"{url}/x", headers={"X-A": ["1", 2, None]}))
    assert header(answer, "x-a") == ["1", "2"]


async def test_a_template_is_filled(executor: HttpExecutor, url: str) -> None:
    endpoint = {
        "uri": url + "/pets/{petId}{?fields*,missing}",
        "variables": {"petId": "a/b c", "fields": ["x", 2]},
    }
    answer = await executor.execute(call(endpoint=endpoint))
    assert (answer["path"], answer["query"]) == ("/pets/a/b c", "fields=x&fields=2")


@pytest.mark.parametrize("value", [None, "", ".", "..", []])
async def test_a_template_without_a_value(executor: HttpExecutor, url: str, value: Any) -> None:
    endpoint = {"uri": url + "/pets/{petId}", "variables": {"petId": value}}
    error = await failed(executor, call(endpoint=endpoint))
    assert error.problem.type == ProblemType.VALIDATION
    assert "petId" in error.problem.detail


@pytest.mark.parametrize("value", [["a"], {"a": 1}])
async def test_a_template_with_a_value_that_is_no_scalar(executor: HttpExecutor, url: str, value: Any) -> None:
    error = await failed(executor, call(endpoint={"uri": url + "/pets/{petId}", "variables": {"petId": value}}))
    assert (error.problem.type, error.problem.status) == (ProblemType.EXPRESSION, 400)
    assert "petId" in error.problem.detail
    listed = {"uri": url + "/pets{/petId*}", "variables": {"petId": ["a", "b"]}}
    assert (await executor.execute(call(endpoint=listed)))["path"] == "/pets/a/b"


async def test_a_large_request_is_refused(executor: HttpExecutor, url: str) -> None:
    error = await failed(executor, call(method="post", endpoint=url, body="x" * (LIMIT + 1)))
    assert error.problem.type == ProblemType.PAYLOAD_TOO_LARGE


# --- redirects


async def test_credentials_stay_with_their_origin(executor: HttpExecutor, url: str) -> None:
    async with web_server(APP) as other:
        endpoint = {"uri": f"{url}/elsewhere", "authentication": {"bearer": {"token": "hush-hush"}}}
        headers = {"X-Api-Key": "k", "Cookie": "a=b", "Accept": "text/x"}
        within = await executor.execute(
            call(endpoint=endpoint, query={"to": "/here"}, headers=headers, redirect=True, method="post", body={"a": 1})
        )
        assert header(within, "authorization") == ["Bearer ***"]
        assert header(within, "x-api-key") == ["k"]
        assert base64.b64decode(within["body"]) == b'{"a":1}'
        beyond = await executor.execute(
            call(endpoint=endpoint, query={"to": f"{other}/there"}, headers=headers, redirect=True)
        )
        names = {name for name, _ in beyond["headers"]}
        assert not names & {"authorization", "x-api-key", "cookie"}
        assert {"accept", "idempotency-key"} <= names


async def test_see_other_becomes_a_get(executor: HttpExecutor, url: str) -> None:
    query = {"to": "/here", "code": 303}
    answer = await executor.execute(
        call(method="post", endpoint=f"{url}/elsewhere", query=query, body={"a": 1}, redirect=True, output="response")
    )
    assert answer["request"]["method"] == "GET"
    assert answer["content"]["body"] == ""


async def test_redirecting_statuses_are_no_errors_when_wanted(executor: HttpExecutor, url: str) -> None:
    answer = await executor.execute(call(endpoint=f"{url}/unchanged", redirect=True, output="response"))
    assert answer["statusCode"] == 304
    assert (await failed(executor, call(endpoint=f"{url}/unchanged"))).problem.status == 304


async def test_a_redirect_to_no_http(executor: HttpExecutor, url: str) -> None:
    error = await failed(executor, call(endpoint=f"{url}/elsewhere", query={"to": "file:///etc/passwd"}, redirect=True))
    assert error.problem.type in (ProblemType.COMMUNICATION, ProblemType.VALIDATION)


async def test_a_redirect_to_a_private_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hop's name counts as public here; the address that the second one names does not."""
    from flint_worker.executors import addresses

    port = url.rpartition(":")[2]
    resolve = addresses._resolve

    async def resolved(host: str, to: int) -> list[str]:
        return ["127.0.0.1"] if host == "public.test" else await resolve(host, to)

    monkeypatch.setattr(addresses, "_resolve", resolved)
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1" and allowed)
    allowed = True
    async with executor_for(settings(allow_private_addresses=False)) as guarded:
        answer = await guarded.execute(call(endpoint=f"http://public.test:{port}/x"))
        assert answer["path"] == "/x"
        query = {"to": "http://169.254.169.254/latest/meta-data"}
        error = await failed(guarded, call(endpoint=f"http://public.test:{port}/elsewhere", query=query, redirect=True))
        assert (error.problem.type, error.problem.status) == (ProblemType.AUTHORIZATION, 403)
        # A name that resolved to a public address and does not any more: the check is made when it is connected to.
        allowed = False
        await guarded.close()
    async with executor_for(settings(allow_private_addresses=False)) as guarded:
        error = await failed(guarded, call(endpoint=f"http://public.test:{port}/x"))
        assert error.problem.type == ProblemType.AUTHORIZATION


# --- hostile servers


async def answering(executor: HttpExecutor, *pieces: bytes, deadline_s: float = 60, **arguments: Any) -> Any:
    """A call to a server that sends these bytes and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    async with raw_server(handle) as address:
        return await executor.execute(call(deadline_s, endpoint=f"http://{address}/", **arguments))


def packed(body: bytes, encoding: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def test_an_endless_body_is_cut(executor: HttpExecutor, url: str) -> None:
    error = await failed(executor, call(endpoint=f"{url}/endless"))
    assert error.problem.type == ProblemType.PAYLOAD_TOO_LARGE
    assert str(LIMIT) in error.problem.detail


async def test_packed_bodies(executor: HttpExecutor) -> None:
    body = b'{"a": 1}'
    raw = zlib.compressobj(wbits=-15)
    assert await answering(executor, packed(gzip.compress(body), "gzip")) == {"a": 1}
    assert await answering(executor, packed(gzip.compress(body[:3]) + gzip.compress(body[3:]), "gzip")) == {"a": 1}
    assert await answering(executor, packed(zlib.compress(body), "deflate")) == {"a": 1}
    assert await answering(executor, packed(raw.compress(body) + raw.flush(), "deflate")) == {"a": 1}
    assert await answering(executor, packed(b"", "gzip")) is None


async def test_a_packed_bomb_is_cut(executor: HttpExecutor) -> None:
    bomb = gzip.compress(bytes(50 * 2**20), 9)
    with pytest.raises(ExecutionFailed) as raised:
        await answering(executor, packed(bomb, "gzip"))
    assert raised.value.problem.type == ProblemType.PAYLOAD_TOO_LARGE


@pytest.mark.parametrize(
    "answer",
    [
        packed(b"not gzip at all", "gzip"),
        packed(gzip.compress(b"x" * 1000, mtime=0)[:-9], "gzip"),
        packed(b"x", "br"),
        packed(gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "gzip, gzip"),
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfff\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 xyz\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000,
        b"",
    ],
)
async def test_answers_that_are_broken(executor: HttpExecutor, answer: bytes) -> None:
    with pytest.raises(ExecutionFailed) as raised:
        await answering(executor, answer)
    assert raised.value.problem.type == ProblemType.COMMUNICATION
    assert len(raised.value.problem.detail) < 500


async def test_a_slow_drip_ends_by_the_deadline(executor: HttpExecutor) -> None:
    closed = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50000\r\n\r\n")
        drip = asyncio.create_task(dripping(writer))
        try:
            with suppress(ConnectionError):  # a close with bytes unread is a reset
                await reader.read()
            closed.set()
        finally:
            drip.cancel()

    async def dripping(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.01)

    async with raw_server(handle) as address:
        error = await failed(executor, call(2.0, endpoint=f"http://{address}/"))
        assert (error.problem.type, error.problem.status) == (ProblemType.TIMEOUT, 408)
        async with asyncio.timeout(60):
            await closed.wait()


async def test_silence_ends_by_the_read_limit() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(handle) as address, executor_for(settings(http_read_s=0.2)) as executor:
        error = await failed(executor, call(endpoint=f"http://{address}/"))
    assert error.problem.type == ProblemType.TIMEOUT
    assert "silent" in error.problem.title


async def test_a_cancelled_call_closes_its_connection(executor: HttpExecutor) -> None:
    came, closed = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        closed.set()

    async with raw_server(handle) as address, asyncio.timeout(60):
        calling = asyncio.create_task(executor.execute(call(endpoint=f"http://{address}/")))
        await came.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await closed.wait()


async def test_what_keeps_a_connection_from_being_made(executor: HttpExecutor, unused_tcp_port: int) -> None:
    refused = await failed(executor, call(endpoint=f"http://127.0.0.1:{unused_tcp_port}/secret?x=hush"))
    assert "refused" in refused.problem.title
    assert "hush" not in refused.problem.detail
    unknown = await failed(executor, call(endpoint="http://no-such-host.invalid/"))
    assert "resolved" in unknown.problem.title


# --- TLS and HTTP/2


async def test_http2_shares_one_connection(authority: Trust) -> None:
    async with (
        http2_server(APP, authority.server("127.0.0.1")) as h2,
        executor_for(settings(ca_file=str(authority.ca_file))) as executor,
    ):
        first = await executor.execute(call(endpoint=f"{h2}/x"))
        assert first["version"] == "2"
        many = await asyncio.gather(*(executor.execute(call(endpoint=f"{h2}/{n}")) for n in range(10)))
        assert {answer["peer"] for answer in many} == {first["peer"]}
        body = {"a": "x" * 50_000}
        answer = await executor.execute(call(method="post", endpoint=f"{h2}/x", body=body))
        assert len(base64.b64decode(answer["body"])) > 50_000


async def disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_abandoned_http2_answers_leave_room_for_others(authority: Trust) -> None:
    running = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running
        if scope["path"] != "/drip":
            await APP(scope, receive, send)
            return
        running += 1
        gone = asyncio.create_task(disconnected(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
            await asyncio.sleep(0)
        running -= 1

    async with (
        http2_server(app, authority.server("127.0.0.1")) as h2,
        executor_for(settings(ca_file=str(authority.ca_file))) as executor,
    ):
        first = await executor.execute(call(endpoint=f"{h2}/x"))
        for _ in range(20):
            error = await failed(executor, call(endpoint=f"{h2}/drip"))
            assert error.problem.type == ProblemType.PAYLOAD_TOO_LARGE
        await eventually(lambda: running == 0)
        assert (await executor.execute(call(endpoint=f"{h2}/x")))["peer"] != first["peer"]


async def test_an_abandoned_http2_answer_disturbs_no_other(authority: Trust) -> None:
    """Two streams of one connection: one is cut while the other has not been answered."""
    came, go = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(disconnected(receive))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        if scope["path"] == "/held":
            came.set()
            await go.wait()
            await send({"type": "http.response.body", "body": b"held"})
        while scope["path"] == "/endless" and not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
            await asyncio.sleep(0)
        gone.cancel()

    async with (
        http2_server(app, authority.server("127.0.0.1")) as h2,
        executor_for(settings(ca_file=str(authority.ca_file))) as executor,
    ):
        waiting = asyncio.create_task(executor.execute(call(endpoint=f"{h2}/held")))
        await came.wait()
        error = await failed(executor, call(endpoint=f"{h2}/endless"))
        assert error.problem.type == ProblemType.PAYLOAD_TOO_LARGE
        go.set()
        assert await waiting == "held"


async def test_a_cancelled_http2_call_ends_its_stream(authority: Trust) -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        came.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with (
        http2_server(app, authority.server("127.0.0.1")) as h2,
        executor_for(settings(ca_file=str(authority.ca_file))) as executor,
        asyncio.timeout(60),
    ):
        calling = asyncio.create_task(executor.execute(call(endpoint=f"{h2}/")))
        await came.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await gone.wait()


async def test_a_certificate_nobody_trusts(executor: HttpExecutor, authority: Trust) -> None:
    certificate = str(authority.server("localhost", "127.0.0.1"))
    async with web_server(APP, ssl_certfile=certificate) as tls:
        error = await failed(executor, call(endpoint=f"{tls}/x"))
        assert "not trusted" in error.problem.title
        async with executor_for(settings(ca_file=str(authority.ca_file))) as trusting:
            assert (await trusting.execute(call(endpoint=f"{tls}/x")))["path"] == "/x"
            plain = await failed(trusting, call(endpoint=tls.replace("https", "http")))
            assert plain.problem.type == ProblemType.COMMUNICATION
            other = await failed(trusting, call(endpoint=tls.replace("127.0.0.1", "127.0.0.2")))
            assert other.problem.type == ProblemType.COMMUNICATION


async def test_a_client_certificate_is_shown_to_its_hosts(authority: Trust) -> None:
    context = {
        "ssl_certfile": str(authority.server("localhost", "127.0.0.1")),
        "ssl_ca_certs": str(authority.ca_file),
        "ssl_cert_reqs": int(ssl.CERT_REQUIRED),
    }
    async with web_server(APP, **context) as tls:
        mine = CertificateSettings(hosts=["127.0.0.1"], certificate_file=str(authority.server("worker.example")))
        async with executor_for(settings({"mine": mine}, ca_file=str(authority.ca_file))) as known:
            assert (await known.execute(call(endpoint=f"{tls}/x")))["path"] == "/x"
        async with executor_for(settings(ca_file=str(authority.ca_file))) as unknown:
            error = await failed(unknown, call(endpoint=f"{tls}/x"))
            assert error.problem.type == ProblemType.COMMUNICATION


async def test_no_tls_where_it_is_expected(executor: HttpExecutor, url: str) -> None:
    error = await failed(executor, call(endpoint=url.replace("http:", "https:")))
    assert "TLS" in error.problem.title


# --- proxies


async def test_a_proxy_is_used(url: str, authority: Trust) -> None:
    async with (
        proxy_server() as proxy,
        web_server(APP, ssl_certfile=str(authority.server("localhost", "127.0.0.1"))) as tls,
    ):
        through = proxy.url.replace("http://", "http://me:hush@")
        given = settings(proxy=through, ca_file=str(authority.ca_file), no_proxy=["localhost"])
        async with executor_for(given) as executor:
            assert (await executor.execute(call(endpoint=f"{url}/x")))["path"] == "/x"
            assert (await executor.execute(call(endpoint=f"{tls}/y")))["path"] == "/y"
            await executor.execute(call(endpoint=f"{url}/z".replace("127.0.0.1", "localhost")))
        assert [method for method, _ in proxy.requests] == ["GET", "CONNECT"]
        assert proxy.requests[0][1] == f"{url}/x"
        assert set(proxy.credentials) == {"Basic " + base64.b64encode(b"me:hush").decode()}


async def test_no_proxy_comes_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy_server() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with executor_for(settings()) as executor:
            assert (await executor.execute(call(endpoint=f"{url}/x")))["path"] == "/x"
        assert proxy.requests == []


async def test_a_proxy_is_no_way_to_private_addresses(url: str) -> None:
    async with proxy_server() as proxy:
        async with executor_for(settings(allow_private_addresses=False, proxy=proxy.url)) as executor:
            for address in (url, url.replace("127.0.0.1", "localhost"), "http://169.254.169.254/"):
                error = await failed(executor, call(endpoint=address))
                assert error.problem.type == ProblemType.AUTHORIZATION
        assert proxy.requests == []


async def test_a_proxy_that_refuses(url: str, authority: Trust) -> None:
    async with proxy_server(refuse=True) as proxy, executor_for(settings(proxy=proxy.url)) as executor:
        assert (await failed(executor, call(endpoint=url))).problem.status == 407
        tunnel = await failed(executor, call(endpoint="https://127.0.0.1:1/"))
        assert "proxy" in tunnel.problem.title


@pytest.mark.parametrize(
    ("patterns", "host", "port", "covered"),
    [
        (["*"], "example.com", 80, True),
        (["example.com"], "example.com", 443, True),
        (["example.com"], "www.example.com", 443, True),
        ([".example.com"], "example.com", 443, True),
        (["*.example.com"], "www.EXAMPLE.com", 443, True),
        (["example.com"], "notexample.com", 443, False),
        (["example.com:8080"], "example.com", 8080, True),
        (["example.com:8080"], "example.com", 80, False),
        (["10.0.0.0/8"], "10.1.2.3", 80, True),
        (["10.0.0.0/8"], "11.1.2.3", 80, False),
        (["10.0.0.0/8"], "example.com", 80, False),
        (["::1"], "::1", 80, True),
        (["[::1]:81"], "::1", 81, True),
        (["[::1]:81"], "::1", 80, False),
        (["", " "], "example.com", 80, False),
    ],
)
def test_no_proxy_patterns(patterns: list[str], host: str, port: int, covered: bool) -> None:
    assert names_host(patterns, Host(host, port)) is covered
