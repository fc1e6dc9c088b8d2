"""The email executor and TLS, servers that ask to try again, and slow or hostile ones."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from flint_core.problems import ProblemType
from flint_ops.config import ConnectionSettings, Settings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.email import EmailExecutor

AUTHORITY = trustme.CA()


class Mailbox:
    """What the server was given, and how it answers."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.mechanisms: list[str] = []
        self.encrypted: list[bool] = []

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("later"):
            return "451 greylisted"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.encrypted.append(session.ssl is not None or server.transport.get_extra_info("sslcontext") is not None)
        content = envelope.content or b""
        assert isinstance(content, bytes)
        for word, answer in ((b"busy", "452 no room now"), (b"huge", "552 too much")):
            if word in content:
                return answer
        self.envelopes.append(envelope)
        return "250 OK"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.mechanisms.append(mechanism)
        good = isinstance(data, LoginPassword) and data.password == b"right"
        return AuthResult(success=good, handled=False)


def certificate(name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert(name).configure_cert(context)
    return context


@asynccontextmanager
async def serving(make: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def smtp(mailbox: Mailbox, **options: Any) -> Callable[[], asyncio.Protocol]:
    options.setdefault("auth_require_tls", False)
    loop = asyncio.get_running_loop()
    return lambda: SMTP(mailbox, authenticator=mailbox.authenticate, enable_SMTPUTF8=True, loop=loop, **options)


@pytest.fixture
def authorities(tmp_path: Path) -> str:
    file = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(file)
    return str(file)


def executor(url: str, ca_file: str = "", **more: Any) -> EmailExecutor:
    connection = ConnectionSettings(kind="smtp", url=url, sender="shop@example.com", ca_file=ca_file, **more)
    return EmailExecutor(Settings(connections={"mail": connection}))


def call(deadline_s: float | None = 60, **arguments: Any) -> ResolvedCall:
    arguments = {"connection": "mail", "to": "a@example.com", "subject": "Hello", "text": "Hi"} | arguments
    return ResolvedCall("email", arguments, "key-1", "/do/0/x", "run", "", deadline_s)


async def failed(executor: EmailExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    assert "hush" not in str(raised.value.problem)
    return raised.value


async def test_starttls_with_authentication(authorities: str) -> None:
    mailbox = Mailbox()
    options = {"tls_context": certificate("localhost"), "require_starttls": True, "auth_require_tls": True}
    async with serving(smtp(mailbox, **options)) as port:
        sent = await executor(f"smtp+starttls://me:right@localhost:{port}", authorities).execute(call())
        assert sent["accepted"] == ["a@example.com"]
        assert mailbox.encrypted == [True]
        error = await failed(executor(f"smtp+starttls://me:hush@localhost:{port}", authorities), call())
        assert error.problem.type == ProblemType.AUTHENTICATION


async def test_implicit_tls(authorities: str) -> None:
    mailbox = Mailbox()
    async with serving(smtp(mailbox), certificate("localhost")) as port:
        await executor(f"smtps://localhost:{port}", authorities).execute(call())
        assert mailbox.encrypted == [True]


@pytest.mark.parametrize("scheme", ["smtps", "smtp+starttls"])
async def test_a_certificate_that_does_not_fit_is_refused(scheme: str, authorities: str) -> None:
    mailbox = Mailbox()
    for name, file in (("elsewhere.example", authorities), ("localhost", "")):
        context = certificate(name)
        implicit = scheme == "smtps"
        server = smtp(mailbox) if implicit else smtp(mailbox, tls_context=context)
        async with serving(server, context if implicit else None) as port:
            error = await failed(executor(f"{scheme}://me:hush@localhost:{port}", file), call())
        assert error.problem.type == ProblemType.COMMUNICATION
    assert mailbox.envelopes == []
    assert mailbox.mechanisms == []
    error = await failed(executor("smtps://localhost:1", "/nowhere/ca.pem"), call())
    assert error.problem.type == ProblemType.CONFIGURATION


@pytest.mark.parametrize("excluded", [[], ["PLAIN"]])
async def test_authentication_mechanisms(excluded: list[str]) -> None:
    mailbox = Mailbox()
    async with serving(smtp(mailbox, auth_exclude_mechanism=excluded)) as port:
        await executor(f"smtp://me:right@127.0.0.1:{port}").execute(call())
    assert mailbox.mechanisms == (["LOGIN"] if excluded else ["PLAIN"])


@pytest.mark.parametrize("arguments", [{"text": "busy"}, {"to": "later@example.com"}])
async def test_a_server_that_asks_to_try_again(arguments: dict[str, Any]) -> None:
    async with serving(smtp(Mailbox())) as port:
        error = await failed(executor(f"smtp://127.0.0.1:{port}"), call(**arguments))
    assert (error.problem.type, error.problem.status) == (ProblemType.COMMUNICATION, 503)


async def test_sizes_are_bounded() -> None:
    async with serving(smtp(Mailbox())) as port:
        error = await failed(executor(f"smtp://127.0.0.1:{port}", message_bytes=5000), call(text="x" * 6000))
        assert (error.problem.type, error.problem.status) == (ProblemType.PAYLOAD_TOO_LARGE, 413)
        error = await failed(executor(f"smtp://127.0.0.1:{port}"), call(text="huge"))
        assert (error.problem.type, error.problem.status) == (ProblemType.PAYLOAD_TOO_LARGE, 413)


async def test_images_are_shown_in_the_html() -> None:
    mailbox = Mailbox()
    logo = {"name": "logo.png", "inline": "logo", "base64": base64.b64encode(b"\x89PNG").decode()}
    async with serving(smtp(mailbox)) as port:
        sender = executor(f"smtp://127.0.0.1:{port}")
        attachments = [{"name": "a.txt", "text": "a"}, logo]
        await sender.execute(call(html='<img src="cid:logo">', attachments=attachments))
        error = await failed(sender, call(attachments=[logo]))
        assert error.problem.type == ProblemType.VALIDATION
    content = mailbox.envelopes[0].content
    assert isinstance(content, bytes)
    message = message_from_bytes(content, policy=default)
    assert isinstance(message, EmailMessage)
    assert [part.get_filename() for part in message.iter_attachments()] == ["a.txt"]
    kinds = [part.get_content_type() for part in message.walk()]
    assert kinds == [
        *("multipart/mixed", "multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png"),
        "text/plain",
    ]
    image = next(part for part in message.walk() if part.get_content_type() == "image/png")
    assert (image["Content-ID"], image.get_content_disposition()) == ("<logo>", "inline")


async def test_addresses_and_names_outside_ascii() -> None:
    mailbox = Mailbox()
    async with serving(smtp(mailbox)) as port:
        sender = executor(f"smtp://127.0.0.1:{port}")
        sent = await sender.execute(call(to=["Jörg <joerg@bücher.example>", "jörg@example.com"]))
    assert sent["accepted"] == ["joerg@xn--bcher-kva.example", "jörg@example.com"]
    assert mailbox.envelopes[0].rcpt_tos == sent["accepted"]


class Hostile(asyncio.Protocol):
    """Greets in its own way, then answers nothing or nonsense."""

    def __init__(self, greeting: bytes, endless: bool = False) -> None:
        self.greeting, self.endless = greeting, endless
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.greeting)
        if self.endless:
            self.more()

    def more(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"250-x\r\n" * 1000)
            asyncio.get_running_loop().call_later(0.001, self.more)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None


@pytest.mark.parametrize(
    ("greeting", "endless"),
    [
        (b"", False),
        (b"220 hello\r\n", False),
        (b"220 hello\r\n", True),
        (b"x" * 1_000_000, False),
        (b"\xff\xfe\r\n", False),
        (b"421 go away\r\n", False),
    ],
)
async def test_slow_and_hostile_servers_cost_a_bounded_time(greeting: bytes, endless: bool) -> None:
    async with serving(lambda: Hostile(greeting, endless)) as port, asyncio.timeout(60):
        error = await failed(executor(f"smtp://127.0.0.1:{port}"), call(1.0))
    assert error.problem.type in (ProblemType.TIMEOUT, ProblemType.COMMUNICATION)
