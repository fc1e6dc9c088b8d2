"""The command of an append, and what its acknowledgement means."""

from __future__ import annotations

from typing import Any, Final

import orjson

from flint_bus.errors import AppendRefused, AppendUnknown, SequenceMismatch, StreamFull, StreamMissing
from flint_bus.messages import status_of

__all__ = ["append_command", "read_ack"]

_WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
_STREAM_GONE: Final = frozenset({10060, 10059})
_STORE_FAILED: Final = 10077


def append_command(
    subject: str, reply: str, data: bytes, msg_id: str, stream: str, expected_sequence: int | None
) -> bytes:
    """An HPUB with Nats-Msg-Id, the expected stream and, where given, the expected last sequence of the subject.

    Built as one string: names are Flint's own (`subjects.py`) or hexadecimal, never text from outside.
    """
    head = "NATS/1.0\r\n"
    if msg_id:
        head += f"Nats-Msg-Id: {msg_id}\r\n"
    if stream:
        head += f"Nats-Expected-Stream: {stream}\r\n"
    if expected_sequence is not None:
        head += f"Nats-Expected-Last-Subject-Sequence: {expected_sequence}\r\n"
    head += "\r\n"
    size = len(head)
    return b"".join(
        (f"HPUB {subject} {reply} {size} {size + len(data)}\r\n{head}".encode("ascii"), data, b"\r\n"),
    )


def read_ack(data: bytes, headers: bytes | None) -> int:
    """The sequence of an acknowledged append, or the typed error it was refused with.

    A repeated message id within the duplicate window answers the sequence under which it was stored, unless an expected
    sequence came with it: that is looked at first and refused. Then the subject's last message tells (R9).
    """
    if headers is not None and status_of(headers) == 503:
        raise StreamMissing("no stream listens on this subject")
    try:
        ack: Any = orjson.loads(data)
        error = ack.get("error")
        if error is None:
            return int(ack["seq"])
    except (ValueError, KeyError, AttributeError, TypeError) as cause:
        raise AppendUnknown(f"the acknowledgement cannot be read: {data[:200]!r}") from cause
    code, err_code = int(error.get("code", 0)), int(error.get("err_code", 0))
    text = str(error.get("description", ""))
    if err_code in _WRONG_LAST_SEQUENCE:
        tail = text.rpartition(" ")[2]
        raise SequenceMismatch(text, int(tail) if tail.isdigit() else None)
    if err_code in _STREAM_GONE:
        raise StreamMissing(text)
    if err_code == _STORE_FAILED and "maximum" in text:
        raise StreamFull(text)
    if code >= 500:
        # Out of resources, no leader, a store's I/O error: the server does not say that it was not stored.
        raise AppendUnknown(f"{text} (err_code {err_code})")
    raise AppendRefused(f"{text} (err_code {err_code})")
