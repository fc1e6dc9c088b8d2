"""API keys: `flint_<key id>_<secret>`. Only the SHA-256 of the secret part is ever stored or sent between services."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

__all__ = ["ApiKey", "generate", "parse"]

_FORM = re.compile(r"flint_([a-z0-9]{4,32})_([A-Za-z0-9]{16,128})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key in the hands of who presents it. `token` is the bearer token; keep it out of logs."""

    key_id: str
    token: str
    secret_hash: bytes

    def __repr__(self) -> str:
        return f"ApiKey({self.key_id})"


def generate() -> ApiKey:
    """A fresh key with 192 random bits."""
    key = parse(f"flint_{secrets.token_hex(6)}_{secrets.token_hex(24)}")
    if key is None:
        raise AssertionError("a generated key has the form of a key")
    return key


def parse(token: str) -> ApiKey | None:
    """The key in a bearer token; None when it has not the form of one."""
    match = _FORM.fullmatch(token)
    if match is None:
        return None
    return ApiKey(match[1], token, hashlib.sha256(match[2].encode()).digest())
