"""Digest access authentication, RFC 7616: answers to challenges, and the memory that spares the next one.

MD5 and SHA-256 with their session variants, SHA-512-256; protection `auth` and `auth-int`; userhash; the older form
without protection (RFC 2069). Of several challenges the strongest is answered.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

from flint_worker.authentication.policies import AuthenticationFailed

__all__ = ["DigestMemory"]

_REMEMBERED: Final = 1000
_LONGEST: Final = 8192
_PAIR: Final = re.compile(r'\s*([A-Za-z0-9!#$%&\'*+.^_`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*(?:,|$)')
_SCHEME: Final = re.compile(r"(?:^|,)\s*digest\s+", re.IGNORECASE)

_Hash = Callable[[bytes], str]


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha512_256(data: bytes) -> str:
    return hashlib.new("sha512_256", data).hexdigest()


_HASHES: Final[dict[str, tuple[int, _Hash]]] = {
    "SHA-512-256": (3, _sha512_256),
    "SHA-256": (2, _sha256),
    "MD5": (1, _md5),
}
"""By algorithm: its strength, and the hash."""


class _Challenge(NamedTuple):
    realm: str
    nonce: str
    opaque: str
    algorithm: str  # as the server spelled it; empty: it named none
    base: str  # in _HASHES
    session: bool
    protections: frozenset[str]
    userhash: bool
    stale: bool


class _Remembered:
    __slots__ = ("challenge", "count")

    def __init__(self, challenge: _Challenge) -> None:
        self.challenge = challenge
        self.count = 0


class DigestMemory:
    """The last challenge of each policy and origin, so that the next request is right at once."""

    def __init__(self) -> None:
        self._remembered: OrderedDict[tuple[bytes, str], _Remembered] = OrderedDict()

    def headers(
        self, key: bytes, members: Mapping[str, Any], method: str, uri: str, body: bytes | None
    ) -> dict[str, str]:
        """The answer to the challenge that is remembered; nothing before there was one."""
        remembered = self._remembered.get((key, _origin(uri)))
        if remembered is None:
            return {}
        return {"authorization": _answer(remembered, members, method, uri, body)}

    def answer(
        self,
        key: bytes,
        members: Mapping[str, Any],
        method: str,
        uri: str,
        body: bytes | None,
        sent: str,
        challenges: Sequence[str],
    ) -> dict[str, str] | None:
        """The answer to new challenges; None when the password itself was refused or nothing can be answered."""
        place = (key, _origin(uri))
        old = self._remembered.pop(place, None)
        found = [challenge for text in challenges for challenge in _read(text)]
        if not found:
            return None
        challenge = max(found, key=lambda challenge: _HASHES[challenge.base][0])
        if sent and not challenge.stale and old is not None and old.challenge.nonce == challenge.nonce:
            return None
        remembered = self._remembered[place] = _Remembered(challenge)
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return {"authorization": _answer(remembered, members, method, uri, body)}


def _origin(uri: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def _read(header: str) -> list[_Challenge]:
    """The digest challenges in one WWW-Authenticate header that Flint can answer."""
    found: list[_Challenge] = []
    for begin in _SCHEME.finditer(header[:_LONGEST]):
        values: dict[str, str] = {}
        position = begin.end()
        while match := _PAIR.match(header[:_LONGEST], position):
            quoted, token = match.group(2), match.group(3)
            values.setdefault(match.group(1).lower(), re.sub(r"\\(.)", r"\1", quoted) if token is None else token)
            position = match.end()
        algorithm = values.get("algorithm", "")
        base = (algorithm or "MD5").upper()
        session = base.endswith("-SESS")
        base = base.removesuffix("-SESS")
        if base not in _HASHES or "realm" not in values or not values.get("nonce"):
            continue
        protections = frozenset(part.strip().lower() for part in values.get("qop", "").split(",") if part.strip())
        if protections and not protections & {"auth", "auth-int"}:
            continue
        found.append(
            _Challenge(
                values["realm"],
                values["nonce"],
                values.get("opaque", ""),
                algorithm,
                base,
                session,
                protections,
                values.get("userhash", "").lower() == "true",
                values.get("stale", "").lower() == "true",
            )
        )
    return found


def _answer(remembered: _Remembered, members: Mapping[str, Any], method: str, uri: str, body: bytes | None) -> str:
    challenge = remembered.challenge
    remembered.count += 1
    count = f"{remembered.count:08x}"
    client_nonce = secrets.token_hex(16)
    hashed = _HASHES[challenge.base][1]

    def h(*parts: str) -> str:
        return hashed(":".join(parts).encode())

    username, password = members["username"], members["password"]
    parts = urlsplit(uri)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    secret = h(username, challenge.realm, password)
    if challenge.session:
        secret = h(secret, challenge.nonce, client_nonce)
    protection = ""
    if "auth" in challenge.protections:
        protection = "auth"
    elif challenge.protections:
        if body is None:
            raise AuthenticationFailed("The digest challenge cannot be answered", "it covers a body that is streamed")
        protection = "auth-int"
    request = h(method, target, hashed(body or b"")) if protection == "auth-int" else h(method, target)
    if protection:
        response = h(secret, challenge.nonce, count, client_nonce, protection, request)
    else:
        response = h(secret, challenge.nonce, request)
    fields = []
    if challenge.userhash:
        fields += [_quoted("username", h(username, challenge.realm)), "userhash=true"]
    elif username.isascii() and username.isprintable():
        fields.append(_quoted("username", username))
    else:
        fields.append(f"username*=UTF-8''{quote(username, safe='')}")
    fields += [_quoted("realm", challenge.realm), _quoted("nonce", challenge.nonce), _quoted("uri", target)]
    fields.append(_quoted("response", response))
    if challenge.algorithm:
        fields.append(f"algorithm={challenge.algorithm}")
    if challenge.opaque:
        fields.append(_quoted("opaque", challenge.opaque))
    if protection:
        fields += [f"qop={protection}", f"nc={count}"]
    if protection or challenge.session:
        fields.append(_quoted("cnonce", client_nonce))
    return "Digest " + ", ".join(fields)


def _quoted(name: str, value: str) -> str:
    if not value.isprintable():
        raise AuthenticationFailed("The digest challenge cannot be answered", f"its {name} holds control characters")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'
