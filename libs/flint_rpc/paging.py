"""Pages: sizes and opaque tokens.

A token holds where the next page begins, bound to the list and its filters: used with another list or other filters
it is refused. It is not a secret and grants nothing; the namespace is checked on every call.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

import grpc

from flint_rpc.errors import ErrorReason, FieldViolation, Refused, field_invalid

__all__ = ["PageBinding", "page_size"]

_TAG_BYTES = 8
_MAX_TOKEN = 2048


def page_size(requested: int, *, default: int, most: int, field: str = "page_size") -> int:
    """0 means the default, large is coerced, negative is refused."""
    if requested < 0:
        raise field_invalid((field, "must not be negative"))
    return min(requested or default, most)


class PageBinding:
    """What a page token is bound to: the list's name and its filters (not the page size)."""

    def __init__(self, list_name: str, *filters: str | bytes) -> None:
        digest = hashlib.sha256(list_name.encode())
        for part in filters:
            raw = part if isinstance(part, bytes) else part.encode()
            digest.update(len(raw).to_bytes(8, "big") + raw)
        self._tag = digest.digest()[:_TAG_BYTES]

    def encode(self, cursor: str) -> str:
        """The token of the page after `cursor`."""
        return base64.urlsafe_b64encode(self._tag + cursor.encode()).decode().rstrip("=")

    def decode(self, token: str, field: str = "page_token") -> str:
        """The cursor in a token; empty for the first page. Raises `Refused` (PAGE_TOKEN_INVALID)."""
        if not token:
            return ""
        try:
            if len(token) > _MAX_TOKEN:
                raise ValueError("too long")
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            if raw[:_TAG_BYTES] == self._tag:
                return raw[_TAG_BYTES:].decode()
        except (ValueError, binascii.Error):
            pass
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID,
            "the page token was not issued by this list, or for other filters",
            field_violations=[FieldViolation(field, "begin again without a page token")],
        )
