"""Messages as they come off the wire. Headers stay bytes until somebody asks: most readers never do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["Message", "StoredMessage", "parse_headers", "status_of"]

_LINE: Final = b"NATS/1.0"
_MSG_ID: Final = b"\r\nNats-Msg-Id:"


def parse_headers(raw: bytes | None) -> dict[str, str]:
    """Headers as a dict; a value that is not UTF-8 keeps replacement characters. The status line is left out."""
    headers: dict[str, str] = {}
    if raw is None:
        return headers
    for line in raw.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return headers


def status_of(raw: bytes | None) -> int:
    """The inline status, such as 503 when nobody listens, or 0."""
    if raw is None or not raw.startswith(_LINE + b" "):
        return 0
    digits = raw[len(_LINE) + 1 : len(_LINE) + 4]
    return int(digits) if digits.isdigit() else 0


def message_id_of(raw: bytes | None) -> str:
    """The value of Nats-Msg-Id, or an empty string."""
    if raw is None:
        return ""
    begin = raw.find(_MSG_ID)
    if begin < 0:
        return ""
    begin += len(_MSG_ID)
    return raw[begin : raw.index(b"\r\n", begin)].strip().decode("utf-8", "replace")


class Message:
    """A core NATS message."""

    __slots__ = ("_publish", "_raw_headers", "data", "reply", "subject")

    def __init__(
        self, subject: str, reply: str, data: bytes, raw_headers: bytes | None, publish: Callable[[str, bytes], None]
    ) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self._raw_headers = raw_headers
        self._publish = publish

    @property
    def headers(self) -> dict[str, str]:
        """Its headers, parsed now."""
        return parse_headers(self._raw_headers)

    def respond(self, data: bytes) -> None:
        """Answers a request, fire and forget. Does nothing for a message that asked for no answer."""
        if self.reply:
            self._publish(self.reply, data)


class StoredMessage:
    """A message of a stream. `pending`: how many more the consumer had waiting when this one was sent."""

    __slots__ = ("_raw_headers", "data", "pending", "sequence", "subject")

    def __init__(self, subject: str, sequence: int, data: bytes, raw_headers: bytes | None, pending: int = 0) -> None:
        self.subject = subject
        self.sequence = sequence
        self.data = data
        self.pending = pending
        self._raw_headers = raw_headers

    @property
    def msg_id(self) -> str:
        """Its Nats-Msg-Id, or an empty string."""
        return message_id_of(self._raw_headers)

    @property
    def headers(self) -> dict[str, str]:
        """Its headers, parsed now."""
        return parse_headers(self._raw_headers)
