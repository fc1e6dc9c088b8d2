"""The email executor against a real SMTP server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from flint_core.problems import ProblemType
from flint_ops.config import ConnectionSettings, Settings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.email import EmailExecutor


class Inbox:
    """What the server was given."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.login: tuple[str, str] | None = None

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("nobody"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if b"spam" in (envelope.content or b""):
            return "554 no thanks"
        self.envelopes.append(envelope)
        return "250 OK"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        if not isinstance(data, LoginPassword):
            return AuthResult(success=False, handled=False)
        self.login = (data.login.decode(), data.password.decode())
        return AuthResult(success=data.password == b"right", handled=False)

    def message(self) -> EmailMessage:
        content = self.envelopes[-1].content
        assert isinstance(content, bytes)
        message = message_from_bytes(content, policy=default)
        assert isinstance(message, EmailMessage)
        return message


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
async def executor(inbox: Inbox) -> AsyncIterator[EmailExecutor]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(inbox, authenticator=inbox.authenticate, auth_require_tls=False, enable_SMTPUTF8=True, loop=loop),
        "127.0.0.1",
        0,
    )
    at = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    connections = {
        "mail": ConnectionSettings(kind="smtp", url=f"smtp://{at}", sender="Shop <shop@example.com>", timeout_s=60),
        "login": ConnectionSettings(kind="smtp", url=f"smtp://me%40x:right@{at}", sender="shop@example.com"),
        "wrong": ConnectionSettings(kind="smtp", url=f"smtp://me:hush@{at}", sender="shop@example.com"),
        "plain": ConnectionSettings(kind="smtp", url=f"smtp+starttls://{at}", sender="shop@example.com"),
        "away": ConnectionSettings(kind="smtp", url="smtp://127.0.0.1:1", sender="shop@example.com"),
        "strange": ConnectionSettings(kind="smtp", url="http://h", sender="shop@example.com"),
        "anonymous": ConnectionSettings(kind="smtp", url=f"smtp://{at}"),
        "db": ConnectionSettings(kind="sql", url="sqlite://"),
    }
    yield EmailExecutor(Settings(connections=connections))
    server.close()
    await server.wait_closed()


def call(key: str = "key-1", **arguments: Any) -> ResolvedCall:
    arguments = {"connection": "mail", "to": "a@example.com", "subject": "Hello", "text": "Hi"} | arguments
    return ResolvedCall("email", arguments, key, "/do/0/x", "run", "", 60)


async def failed(executor: EmailExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    assert "hush" not in str(raised.value.problem)
    return raised.value


async def test_text_and_html_with_attachments(executor: EmailExecutor, inbox: Inbox) -> None:
    attachments = [
        {"name": "notes.txt", "text": "größe"},
        {"name": "bild ü.png", "base64": base64.b64encode(b"\x89PNG").decode()},
        {"name": "data.bin", "content_type": "application/x-own", "base64": "AAE="},
    ]
    sent = await executor.execute(call(subject="Grüße", text="Hé", html="<b>Hé</b>", attachments=attachments))
    assert sent["accepted"] == ["a@example.com"]
    message = inbox.message()
    assert message["Subject"] == "Grüße"
    assert message["From"] == "Shop <shop@example.com>"
    body, rich = message.get_body(("plain",)), message.get_body(("html",))
    assert body is not None and rich is not None
    assert body.get_content().strip() == "Hé"
    assert rich.get_content().strip() == "<b>Hé</b>"
    parts = [(part.get_filename(), part.get_content_type(), part.get_content()) for part in message.iter_attachments()]
    assert parts == [
        ("notes.txt", "text/plain", "größe"),
        ("bild ü.png", "image/png", b"\x89PNG"),
        ("data.bin", "application/x-own", b"\x00\x01"),
    ]


async def test_recipients(executor: EmailExecutor, inbox: Inbox) -> None:
    sent = await executor.execute(
        call(
            to=["Ann Ä <ann@example.com>", "bob@example.com"],
            cc="c1@example.com, C Two <c2@example.com>",
            bcc=["secret@example.com", "bob@example.com"],
            reply_to="answers@example.com",
            **{"from": "Boss <boss@example.org>"},
        )
    )
    everyone = ["ann@example.com", "bob@example.com", "c1@example.com", "c2@example.com", "secret@example.com"]
    assert sent["accepted"] == inbox.envelopes[0].rcpt_tos == everyone
    message = inbox.message()
    assert message["To"] == "Ann Ä <ann@example.com>, bob@example.com"
    assert message["Reply-To"] == "answers@example.com"
    assert message["From"] == "Boss <boss@example.org>"
    assert message["Bcc"] is None
    assert "secret" not in message.as_string()
    assert inbox.envelopes[0].mail_from == "boss@example.org"


async def test_a_repeat_has_the_same_message_id(executor: EmailExecutor, inbox: Inbox) -> None:
    ids = [(await executor.execute(call(key)))["message_id"] for key in ("one", "one", "two")]
    assert ids[0] == ids[1] != ids[2]
    assert inbox.message()["Message-ID"] == ids[2]


async def test_some_recipients_refused(executor: EmailExecutor) -> None:
    sent = await executor.execute(call(to=["a@example.com", "nobody@example.com"]))
    assert sent["accepted"] == ["a@example.com"]
    assert sent["refused"] == {"nobody@example.com": "550 no such mailbox"}


async def test_login(executor: EmailExecutor, inbox: Inbox) -> None:
    await executor.execute(call(connection="login"))
    assert inbox.login == ("me@x", "right")
    error = await failed(executor, call(connection="wrong"))
    assert error.problem.type == ProblemType.AUTHENTICATION


@pytest.mark.parametrize(
    ("arguments", "type_"),
    [
        ({"to": "nobody@example.com"}, ProblemType.COMMUNICATION),
        ({"text": "spam"}, ProblemType.COMMUNICATION),
        ({"connection": "away"}, ProblemType.COMMUNICATION),
        ({"connection": "plain"}, ProblemType.COMMUNICATION),  # no STARTTLS offered: never sent in clear
        ({"connection": "strange"}, ProblemType.CONFIGURATION),
        ({"connection": "db"}, ProblemType.CONFIGURATION),
        ({"connection": "other"}, ProblemType.CONFIGURATION),
        ({"connection": "anonymous"}, ProblemType.VALIDATION),
        ({"to": []}, ProblemType.VALIDATION),
        ({"to": "a"}, ProblemType.VALIDATION),
        ({"to": "a@b c@d"}, ProblemType.VALIDATION),
        ({"to": ["a@example.com, b@example.com"]}, ProblemType.VALIDATION),
        ({"to": "a@example.com\r\nBcc: x@example.com"}, ProblemType.VALIDATION),
        ({"to": "A\nX: y <a@example.com>"}, ProblemType.VALIDATION),
        ({"subject": "Hi\r\nBcc: x@example.com"}, ProblemType.VALIDATION),
        ({"from": "a@example.com\nX: y"}, ProblemType.VALIDATION),
        ({"reply_to": "a@ex\x00ample.com"}, ProblemType.VALIDATION),
        ({"attachments": [{"name": "a\r\nX: y", "text": ""}]}, ProblemType.VALIDATION),
        ({"attachments": [{"name": "a", "base64": "%%"}]}, ProblemType.VALIDATION),
        ({"attachments": [{"name": "a", "text": "", "content_type": "multipart/mixed"}]}, ProblemType.VALIDATION),
        ({"unknown": 1}, ProblemType.VALIDATION),
    ],
)
async def test_errors_are_typed(executor: EmailExecutor, inbox: Inbox, arguments: dict[str, Any], type_: str) -> None:
    assert (await failed(executor, call(**arguments))).problem.type == type_
    assert not inbox.envelopes
