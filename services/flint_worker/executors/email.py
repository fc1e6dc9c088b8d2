"""`email`: one message over a named SMTP connection.

A repeat after a lost answer sends the message again with the same Message-ID, made from the step's idempotency key:
mail systems and people can recognise it. A message that some recipients were refused for counts as sent to the others.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import mimetypes
import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime, getaddresses
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aiosmtplib

from flint_core.problems import ProblemType
from flint_ops.config import ConnectionSettings, Settings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.arguments import check_arguments, failure, has_controls, named_connection

__all__ = ["EmailExecutor"]

_PORTS: Final = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
_LATER: Final = "The SMTP server cannot take the email now"
_TOO_LARGE: Final = 552
_FIRST_LATER: Final = 400
_FIRST_FINAL: Final = 500
_QUIT_S: Final = 2.0
_RECIPIENTS: Final = 500
_LOCAL_PART: Final = re.compile(r"[^\s@<>(),;:\"\[\]\\]{1,64}")
_DOMAIN: Final = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)


@dataclass(frozen=True, slots=True)
class _Letter:
    """A message and its envelope."""

    message: EmailMessage
    sender: str
    recipients: list[str]


class EmailExecutor:
    """The function `email`."""

    unfinished = 0  # nothing outlives its call

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = {
            name: asyncio.Semaphore(connection.pool_size)
            for name, connection in settings.connections.items()
            if connection.kind == "smtp"
        }
        self._host = socket.gethostname() or "localhost"

    async def close(self) -> None:
        """Nothing to give back: every message has a connection of its own."""

    async def execute(self, call: ResolvedCall) -> Any:
        """`{message_id, accepted, refused}`. Raises ExecutionFailed."""
        arguments = check_arguments(call)
        connection = named_connection(self._settings, call, "smtp")
        letter = _compose(call, arguments, connection)
        size = len(letter.message.as_bytes())
        if size > connection.message_bytes:
            detail = f"it has {size} bytes; connections.{arguments['connection']}.message_bytes is "
            detail += str(connection.message_bytes)
            raise failure(call, ProblemType.PAYLOAD_TOO_LARGE, 413, "The email is too large", detail)
        limit_s = connection.timeout_s if call.deadline_s is None else min(call.deadline_s, connection.timeout_s)
        try:
            async with asyncio.timeout(limit_s), self._turns[arguments["connection"]]:
                refused = await self._send(call, connection, letter, limit_s)
        except (TimeoutError, aiosmtplib.SMTPTimeoutError):
            raise failure(call, ProblemType.TIMEOUT, 408, "Sending the email took too long") from None
        except aiosmtplib.SMTPAuthenticationError as error:
            title = "The SMTP server refused the credentials"
            if _later(error.code):
                raise failure(call, ProblemType.COMMUNICATION, 503, _LATER, f"SMTP {error.code}") from None
            raise failure(call, ProblemType.AUTHENTICATION, 401, title, f"SMTP {error.code}") from None
        except aiosmtplib.SMTPRecipientsRefused as error:
            first = error.recipients[0]
            detail = f"SMTP {first.code} {first.message}"[:300]
            if any(_later(recipient.code) for recipient in error.recipients):
                raise failure(call, ProblemType.COMMUNICATION, 503, _LATER, detail) from None
            raise failure(call, ProblemType.COMMUNICATION, 500, "All recipients were refused", detail) from None
        except aiosmtplib.SMTPResponseException as error:
            detail = f"SMTP {error.code} {error.message}"[:300]
            if _later(error.code):
                raise failure(call, ProblemType.COMMUNICATION, 503, _LATER, detail) from None
            if error.code == _TOO_LARGE:
                title = "The email is too large for the SMTP server"
                raise failure(call, ProblemType.PAYLOAD_TOO_LARGE, 413, title, detail) from None
            raise failure(call, ProblemType.COMMUNICATION, 500, "The SMTP server refused the email", detail) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            detail = f"{type(error).__name__}: {error}"[:300]
            raise failure(call, ProblemType.COMMUNICATION, 500, "The email was not sent", detail) from None
        return {
            "message_id": str(letter.message["Message-ID"]),
            "accepted": [address for address in letter.recipients if address not in refused],
            "refused": refused,
        }

    async def _send(
        self, call: ResolvedCall, connection: ConnectionSettings, letter: _Letter, timeout_s: float
    ) -> dict[str, str]:
        client = _client(call, connection, timeout_s, self._host)
        try:
            await client.connect()
            errors, _ = await client.send_message(letter.message, sender=letter.sender, recipients=letter.recipients)
            with suppress(
                aiosmtplib.SMTPException, OSError, TimeoutError
            ):  # it is sent; how the server says goodbye is its own affair
                await client.quit(timeout=_QUIT_S)
        finally:
            client.close()
        return {address: f"{code} {text}"[:300] for address, (code, text) in errors.items()}


def _tls(call: ResolvedCall, connection: ConnectionSettings) -> ssl.SSLContext:
    """The server's certificate is checked always; by the connection's own authorities when it names some."""
    try:
        return ssl.create_default_context(cafile=connection.ca_file or None)
    except OSError:
        detail = f"connections.{call.arguments['connection']}.ca_file cannot be read"
        raise failure(call, ProblemType.CONFIGURATION, 400, "The SMTP connection is not usable", detail) from None


def _client(call: ResolvedCall, connection: ConnectionSettings, timeout_s: float, host: str) -> aiosmtplib.SMTP:
    url = urlsplit(connection.url.get_secret_value())
    try:
        port = url.port or _PORTS[url.scheme]
    except (KeyError, ValueError):
        port = 0
    if not port or not url.hostname:
        name = call.arguments["connection"]
        detail = f"connections.{name}.url is not smtp://, smtp+starttls:// or smtps://user:password@host:port"
        raise failure(call, ProblemType.CONFIGURATION, 400, "The SMTP connection is not usable", detail)
    return aiosmtplib.SMTP(
        hostname=url.hostname,
        port=port,
        username=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
        local_hostname=host,
        timeout=timeout_s,
        use_tls=url.scheme == "smtps",
        start_tls=url.scheme == "smtp+starttls",
        tls_context=_tls(call, connection) if url.scheme != "smtp" else None,
    )


def _invalid(call: ResolvedCall, place: str, why: str) -> ExecutionFailed:
    return failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", f"/{place}: {why}")


def _addresses(call: ResolvedCall, place: str, value: str | list[str]) -> list[Address]:
    """Parsed addresses: `name <local@domain>` or `local@domain`; a string may hold several with commas between."""
    texts = [value] if isinstance(value, str) else value
    if any(has_controls(text) for text in texts):
        raise _invalid(call, place, "an address holds a line break or another control character")
    parsed: list[Address] = []
    for text in texts:
        found = getaddresses([text])
        if len(found) != 1 and not isinstance(value, str):
            raise _invalid(call, place, "an item must be one address")
        for name, address in found:
            local, _, domain = address.rpartition("@")
            if not domain.isascii():
                with suppress(UnicodeError):
                    domain = domain.encode("idna").decode("ascii")
            if _LOCAL_PART.fullmatch(local) is None or _DOMAIN.fullmatch(domain) is None:
                raise _invalid(call, place, "an address is not of the form local@domain")
            parsed.append(Address(name, local, domain))
    return parsed


def _compose(call: ResolvedCall, arguments: dict[str, Any], connection: ConnectionSettings) -> _Letter:
    """The message. Every header is checked: no argument can add a header or a recipient."""
    sender_text = arguments.get("from") or connection.sender
    if not sender_text:
        raise _invalid(call, "from", f"missing, and connections.{arguments['connection']}.sender is not set")
    senders = _addresses(call, "from", [sender_text])
    people: dict[str, list[Address]] = {
        place: _addresses(call, place, arguments[place])
        for place in ("to", "cc", "bcc", "reply_to")
        if place in arguments
    }
    recipients = list(
        dict.fromkeys(address.addr_spec for place in ("to", "cc", "bcc") for address in people.get(place, []))
    )
    if not recipients:
        raise _invalid(call, "to", "no recipient")
    if len(recipients) > _RECIPIENTS:
        raise _invalid(call, "to", f"more than {_RECIPIENTS} recipients")
    if has_controls(arguments["subject"]):
        raise _invalid(call, "subject", "holds a line break or another control character")
    message = EmailMessage(policy=SMTP_POLICY)
    message["From"] = senders[0]
    for place, header in (("to", "To"), ("cc", "Cc"), ("reply_to", "Reply-To")):
        if people.get(place):
            message[header] = people[place]
    message["Subject"] = arguments["subject"]
    message["Date"] = format_datetime(datetime.now(UTC))
    digest = hashlib.sha256(call.idempotency_key.encode()).hexdigest()[:40]
    message["Message-ID"] = f"<{digest}@{senders[0].domain}>"
    _set_body(message, arguments)
    attachments = list(enumerate(arguments.get("attachments", [])))
    rich = message.get_body(("html",))
    for number, attachment in attachments:
        if "inline" in attachment:
            # Images that the HTML shows belong to its part, so they come before the message gets other attachments.
            if not isinstance(rich, EmailMessage):
                raise _invalid(call, f"attachments/{number}/inline", "there is no html to show it in")
            _attach(call, rich, f"attachments/{number}", attachment)
    for number, attachment in attachments:
        if "inline" not in attachment:
            _attach(call, message, f"attachments/{number}", attachment)
    return _Letter(message, senders[0].addr_spec, recipients)


def _later(code: int) -> bool:
    """Whether the server's answer is one of those that ask to try again (RFC 5321, 4.2.1)."""
    return _FIRST_LATER <= code < _FIRST_FINAL


def _set_body(message: EmailMessage, arguments: dict[str, Any]) -> None:
    if "text" in arguments:
        message.set_content(arguments["text"])
        if "html" in arguments:
            message.add_alternative(arguments["html"], subtype="html")
    else:
        message.set_content(arguments["html"], subtype="html")


def _attach(call: ResolvedCall, message: EmailMessage, place: str, attachment: dict[str, Any]) -> None:
    name = attachment["name"]
    if has_controls(name):
        raise _invalid(call, f"{place}/name", "holds a line break or another control character")
    if "text" in attachment:
        content = attachment["text"].encode()
        fallback = "text/plain"
    else:
        try:
            content = base64.b64decode(attachment["base64"], validate=True)
        except (binascii.Error, ValueError):
            raise _invalid(call, f"{place}/base64", "is not base64") from None
        fallback = "application/octet-stream"
    media = attachment.get("content_type") or mimetypes.guess_type(name)[0] or fallback
    main, _, sub = media.lower().partition("/")
    if main in ("multipart", "message"):
        raise _invalid(call, f"{place}/content_type", f"{main} cannot be attached")
    parameters = {"charset": "utf-8"} if main == "text" else {}
    if "inline" in attachment:
        message.add_related(
            content,
            maintype=main,
            subtype=sub,
            filename=name,
            params=parameters,
            disposition="inline",
            cid=f"<{attachment['inline']}>",
        )
        return
    message.add_attachment(content, maintype=main, subtype=sub, filename=name, params=parameters)
