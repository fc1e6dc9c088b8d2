"""The http executor against a real HTTP server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from flint_core.problems import ProblemType
from flint_ops.config import LimitSettings, Settings, WorkerSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.addresses import is_public
from flint_worker.executors.http import HttpExecutor

TRACE = "0af7651916cd43dd8448eb211c80319c"


async def echo(request: Request) -> Response:
    body = await request.body()
    answer = JSONResponse(
        {
            "method": request.method,
            "query": request.query_params.multi_items(),
            "headers": dict(request.headers),
            "body": body.decode(),
            "peer": request.client.port if request.client else None,
        }
    )
    answer.set_cookie("session", "s3cret")
    return answer


async def status(request: Request) -> Response:
    headers = {"retry-after": request.query_params["after"]} if "after" in request.query_params else {}
    return PlainTextResponse("no", int(request.path_params["code"]), headers)


async def redirect(request: Request) -> Response:
    return RedirectResponse(request.query_params.get("to", "/echo"))


async def loop(request: Request) -> Response:
    return RedirectResponse("/loop")


async def typed(request: Request) -> Response:
    body = base64.b64decode(request.query_params["body"])
    return Response(
        body, headers={"content-type": request.query_params["type"]} if request.query_params["type"] else {}
    )


async def large(request: Request) -> Response:
    return PlainTextResponse("x" * int(request.path_params["size"]))


async def slow(request: Request) -> Response:
    await asyncio.Event().wait()
    return Response()


async def digest(request: Request) -> Response:
    if "authorization" in request.headers:
        return PlainTextResponse(request.headers["authorization"].split()[0])
    challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
    return Response(status_code=401, headers={"www-authenticate": challenge})


APP = Starlette(
    routes=[
        Route("/echo", echo, methods=["GET", "POST", "PUT", "DELETE", "PATCH"]),
        Route("/status/{code}", status),
        Route("/redirect", redirect),
        Route("/loop", loop),
        Route("/typed", typed),
        Route("/large/{size}", large),
        Route("/slow", slow),
        Route("/digest", digest),
    ]
)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(APP, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    sockets = [server.config.bind_socket()]
    serving = asyncio.create_task(server.serve(sockets))
    yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


@pytest.fixture
async def executor() -> AsyncIterator[HttpExecutor]:
    settings = Settings(worker=WorkerSettings(allow_private_addresses=True), limits=LimitSettings(value_bytes=10_000))
    executor = HttpExecutor(settings)
    yield executor
    await executor.close()


def call(deadline_s: float | None = 30, **arguments: Any) -> ResolvedCall:
    arguments.setdefault("method", "get")
    return ResolvedCall("http", arguments, "key-1", "/do/0/x", "run", TRACE, deadline_s)


async def failed(executor: HttpExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    assert raised.value.problem.instance == "/do/0/x"
    return raised.value


async def test_a_request_carries_what_it_is_given(executor: HttpExecutor, url: str) -> None:
    seen = await executor.execute(
        call(
            method="post",
            endpoint=f"{url}/echo?own=1",
            query={"q": ["a b", 2], "flag": True, "none": None},
            headers={"X-Number": 5, "X-None": None},
            body={"a": [1, "ü"]},
        )
    )
    assert seen["method"] == "POST"
    assert seen["query"] == [["own", "1"], ["q", "a b"], ["q", "2"], ["flag", "true"]]
    assert seen["headers"]["x-number"] == "5"
    assert "x-none" not in seen["headers"]
    assert seen["headers"]["content-type"] == "application/json"
    assert orjson.loads(seen["body"]) == {"a": [1, "ü"]}
    assert seen["headers"]["idempotency-key"] == "key-1"
    assert seen["headers"]["traceparent"].startswith(f"00-{TRACE}-")


async def test_given_headers_win(executor: HttpExecutor, url: str) -> None:
    headers = {"idempotency-key": "own", "Content-Type": "application/x-www-form-urlencoded"}
    seen = await executor.execute(
        call(method="POST", endpoint=f"{url}/echo", headers=headers, body={"a": "b c", "d": [1, 2]})
    )
    assert seen["headers"]["idempotency-key"] == "own"
    assert seen["body"] == "a=b+c&d=1&d=2"


async def test_connections_are_reused_and_cookies_are_not(executor: HttpExecutor, url: str) -> None:
    first = await executor.execute(call(endpoint=f"{url}/echo"))
    second = await executor.execute(call(endpoint=f"{url}/echo"))
    assert first["peer"] == second["peer"]
    assert "cookie" not in second["headers"]


async def test_response_output_shows_no_secrets(executor: HttpExecutor, url: str) -> None:
    endpoint = {"uri": f"{url}/echo?token=hush", "authentication": {"bearer": {"token": "hush"}}}
    answer = await executor.execute(call(endpoint=endpoint, output="response"))
    assert answer["statusCode"] == 200
    assert answer["request"] == {"method": "GET", "uri": f"{url}/echo"}
    assert answer["headers"]["content-type"] == "application/json"
    assert "set-cookie" not in answer["headers"]
    assert answer["content"]["headers"]["authorization"] == "Bearer ***"


async def test_authentication(executor: HttpExecutor, url: str) -> None:
    person = {"username": "u", "password": "p"}
    basic = await executor.execute(call(endpoint={"uri": f"{url}/echo", "authentication": {"basic": person}}))
    assert basic["headers"]["authorization"] == "Basic ***"
    digest_ = await executor.execute(call(endpoint={"uri": f"{url}/digest", "authentication": {"digest": person}}))
    assert digest_ == "Digest"


@pytest.mark.parametrize(
    ("media", "body", "expected"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}),
        ("application/problem+json", b"[1]", [1]),
        ("text/plain; charset=latin-1", b"\xfc", "ü"),
        ("", b'{"a": 1}', {"a": 1}),
        ("", b"words", "words"),
        ("image/png", b"\x89PNG", base64.b64encode(b"\x89PNG").decode()),
        ("application/json", b"", None),
    ],
)
async def test_content_by_media_type(executor: HttpExecutor, url: str, media: str, body: bytes, expected: Any) -> None:
    query = {"type": media, "body": base64.b64encode(body).decode()}
    assert await executor.execute(call(endpoint=f"{url}/typed", query=query)) == expected
    raw = await executor.execute(call(endpoint=f"{url}/typed", query=query, output="raw"))
    assert raw == (base64.b64encode(body).decode() or None)


async def test_wrong_json_is_an_error(executor: HttpExecutor, url: str) -> None:
    query = {"type": "application/json", "body": base64.b64encode(b"{").decode()}
    assert (
        await failed(executor, call(endpoint=f"{url}/typed", query=query))
    ).problem.type == ProblemType.COMMUNICATION


@pytest.mark.parametrize("code", [400, 401, 404, 429, 500, 503])
async def test_error_statuses(executor: HttpExecutor, url: str, code: int) -> None:
    error = await failed(executor, call(endpoint=f"{url}/status/{code}?token=hush"))
    assert (error.problem.type, error.problem.status) == (ProblemType.COMMUNICATION, code)
    assert "hush" not in error.problem.detail
    assert error.retry_after_ms is None


@pytest.mark.parametrize(
    ("after", "low", "high"),
    [("7", 7000, 7000), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("99999999999", 86_400_000, 86_400_000)],
)
async def test_retry_after(executor: HttpExecutor, url: str, after: str, low: int, high: int) -> None:
    error = await failed(executor, call(endpoint=f"{url}/status/503", query={"after": after}))
    assert error.retry_after_ms is not None
    assert low <= error.retry_after_ms <= high


async def test_nonsense_in_retry_after_is_ignored(executor: HttpExecutor, url: str) -> None:
    error = await failed(executor, call(endpoint=f"{url}/status/503", query={"after": "soon"}))
    assert error.retry_after_ms is None


async def test_redirects(executor: HttpExecutor, url: str) -> None:
    error = await failed(executor, call(endpoint=f"{url}/redirect"))
    assert error.problem.status == 307
    assert (await executor.execute(call(endpoint=f"{url}/redirect", redirect=True)))["method"] == "GET"
    endless = await failed(executor, call(endpoint=f"{url}/loop", redirect=True))
    assert endless.problem.type == ProblemType.COMMUNICATION


async def test_large_answers_are_refused(executor: HttpExecutor, url: str) -> None:
    assert len(await executor.execute(call(endpoint=f"{url}/large/10000"))) == 10_000
    error = await failed(executor, call(endpoint=f"{url}/large/10001"))
    assert error.problem.type == ProblemType.PAYLOAD_TOO_LARGE


async def test_deadline(executor: HttpExecutor, url: str) -> None:
    error = await failed(executor, call(0.2, endpoint=f"{url}/slow"))
    assert (error.problem.type, error.problem.status) == (ProblemType.TIMEOUT, 408)


async def test_nobody_listens(executor: HttpExecutor, unused_tcp_port: int) -> None:
    error = await failed(executor, call(endpoint=f"http://127.0.0.1:{unused_tcp_port}/"))
    assert error.problem.type == ProblemType.COMMUNICATION


@pytest.mark.parametrize(
    "arguments",
    [
        {"endpoint": "ftp://example.com/"},
        {"endpoint": "http://"},
        {"endpoint": "nonsense"},
        {"endpoint": "http://127.0.0.1/", "headers": {"X-A": "a\r\nX-B: b"}},
        {"endpoint": "http://127.0.0.1/", "headers": {"X A": "a"}},
        {"endpoint": "http://127.0.0.1/", "headers": {"Transfer-Encoding": "chunked"}},
        {"endpoint": "http://127.0.0.1/", "output": "xml"},
        {"endpoint": "http://127.0.0.1/", "unknown": 1},
        {"endpoint": {"uri": "http://127.0.0.1/", "authentication": {"basic": {"username": "hush"}}}},
        {"method": "G ET", "endpoint": "http://127.0.0.1/"},
        {},
    ],
)
async def test_invalid_arguments(executor: HttpExecutor, arguments: dict[str, Any]) -> None:
    error = await failed(executor, call(**arguments))
    assert (error.problem.type, error.problem.status) == (ProblemType.VALIDATION, 400)
    assert "hush" not in error.problem.detail


async def test_private_addresses_are_refused_unless_allowed(url: str) -> None:
    guarded = HttpExecutor(Settings())
    port = url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254", "2130706433"):
        error = await failed(guarded, call(endpoint=f"http://{host}:{port}/echo"))
        assert error.problem.type in (ProblemType.AUTHORIZATION, ProblemType.COMMUNICATION), host
        if host != "2130706433":
            assert error.problem.type == ProblemType.AUTHORIZATION, host
    await guarded.close()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


class Closing:
    """A server that answers the first request of each connection and does `then` to the second one."""

    def __init__(self, then: bytes) -> None:
        self.then = then
        self.keys: list[str] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n42")
        await writer.drain()
        if await self.request(reader):
            writer.write(self.then)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def request(self, reader: asyncio.StreamReader) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        lines = head.decode().lower().split("\r\n")
        self.keys += [line.partition(": ")[2] for line in lines if line.startswith("idempotency-key")]
        return True


async def test_a_connection_closed_meanwhile_is_met_once_only(executor: HttpExecutor) -> None:
    closing = Closing(b"")
    server = await asyncio.start_server(closing.serve, "127.0.0.1", 0)
    async with server:
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert await executor.execute(call(method="post", endpoint=endpoint, body={"a": 1})) == 42
        assert await executor.execute(call(method="post", endpoint=endpoint, body={"a": 1})) == 42
        assert closing.connections == 2
        assert closing.keys == ["key-1"] * 3
        await executor.close()


@pytest.mark.parametrize("then", [b"HTTP/1.1 200 OK\r\ncontent-le", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n4"])
async def test_a_request_whose_answer_had_begun_is_not_sent_again(executor: HttpExecutor, then: bytes) -> None:
    closing = Closing(then)
    server = await asyncio.start_server(closing.serve, "127.0.0.1", 0)
    async with server:
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert await executor.execute(call(endpoint=endpoint)) == 42
        error = await failed(executor, call(endpoint=endpoint))
        assert error.problem.type == ProblemType.COMMUNICATION
        assert (closing.connections, len(closing.keys)) == (1, 2)
        await executor.close()


async def test_a_fresh_connection_that_is_closed_is_an_error(executor: HttpExecutor) -> None:
    met = 0

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:
        error = await failed(executor, call(endpoint=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
    assert (error.problem.type, met) == (ProblemType.COMMUNICATION, 1)
