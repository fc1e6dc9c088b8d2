"""Tokens of tasks: what any gateway needs to reach the worker that waits for the outcome.

A token needs no signature: it names the call by 16 random bytes that only the waiting worker and the function worker
know, and the worker refuses what it does not know. It can reach no other subject than that of a caller.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from google.protobuf.message import DecodeError

from flint_contracts.gen.flint.dispatch.v1 import functions_pb2 as dispatch

__all__ = ["decode_token", "encode_token", "is_subject_token"]

_LONGEST: Final = 512
_HEX: Final = re.compile(r"[0-9a-f]{32}")


def encode_token(token: dispatch.FunctionToken) -> str:
    """As function workers see it."""
    return base64.urlsafe_b64encode(token.SerializeToString()).decode().rstrip("=")


def decode_token(text: str) -> dispatch.FunctionToken | None:
    """The reverse; None for what is no token."""
    if not 0 < len(text) <= _LONGEST:
        return None
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        token = dispatch.FunctionToken.FromString(raw)
    except (ValueError, binascii.Error, DecodeError):
        return None
    if not is_subject_token(token.caller) or len(token.call) != 16 or token.dispatch < 1:
        return None
    return token


def is_subject_token(text: str) -> bool:
    """Whether a text may be the last part of a caller's or gateway's subject."""
    return _HEX.fullmatch(text) is not None
