"""One request for a token: OAuth 2.0 (RFC 6749), token exchange (RFC 8693), client assertions (RFC 7523).

Tokens come straight from the token endpoint, over TLS wherever the authority has it, so their signatures are not
checked here; it is the server that they are sent to which must. What is checked is the issuer, where the policy
names some.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote_plus, urlencode

import httpx
import orjson

from flint_core.problems import ProblemType
from flint_worker.authentication.assertions import client_assertion
from flint_worker.authentication.policies import AuthenticationFailed
from flint_worker.executors.client import HttpClient, retry_after_ms
from flint_worker.executors.faults import Fault

__all__ = ["Grant", "Granted", "request_token"]

_REQUEST_S: Final = 30.0
_ANSWER_BYTES: Final = 1_048_576
_LONGEST_LIFE_S: Final = 30 * 86_400.0
_FORM: Final = "application/x-www-form-urlencoded"
_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:"  # noqa: S105 - the beginning of names
_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_CODE: Final = re.compile(r"[a-z0-9_.-]{1,64}")


class Grant(NamedTuple):
    """A policy's members with the endpoint they are for. `ways`: client authentications that it says it knows."""

    endpoint: httpx.URL
    members: Mapping[str, Any]
    issuers: frozenset[str]
    ways: frozenset[str]


class Granted(NamedTuple):
    """What the authority gave. `life_s`: seconds from the request on, None when it does not say."""

    token: str
    life_s: float | None
    refresh_token: str


async def request_token(client: HttpClient, grant: Grant, refresh_token: str = "") -> Granted:
    """Asks the token endpoint, within 30 s. With `refresh_token`, by that instead of the policy's own grant.

    Raises AuthenticationFailed when the authority refuses, a Fault when it cannot be reached or is in trouble.
    """
    fields = _refreshing(grant.members, refresh_token) if refresh_token else _fields(grant.members)
    headers = {"accept": "application/json"}
    fields += _client(grant, headers)
    encoding = grant.members.get("request", {}).get("encoding", _FORM)
    headers["content-type"] = encoding
    content = urlencode(fields).encode() if encoding == _FORM else orjson.dumps(_object(fields))
    answer = await client.exchange(
        "POST", grant.endpoint, headers=headers, content=content, deadline_s=_REQUEST_S, limit_bytes=_ANSWER_BYTES
    )
    document = _json(answer.body)
    if answer.status in (408, 429) or answer.status >= 500:
        wait_ms = retry_after_ms(answer.headers.get("retry-after", ""))
        detail = f"it answered {answer.status}"
        raise Fault(ProblemType.COMMUNICATION, answer.status, "The authority gives no token now", detail, wait_ms)
    if not 200 <= answer.status < 300:
        code = document.get("error")
        # Its description is not repeated: it may quote what was sent.
        known = f", error {code}" if isinstance(code, str) and _CODE.fullmatch(code) else ""
        raise AuthenticationFailed("The authority refuses to give a token", f"it answered {answer.status}{known}")
    return _granted(document, grant.issuers)


def _fields(members: Mapping[str, Any]) -> list[tuple[str, str]]:
    kind = members.get("grant", "client_credentials")
    fields = [("grant_type", kind)]
    if kind == "password":
        fields += [("username", _needed(members, "username")), ("password", _needed(members, "password"))]
    elif kind == "refresh_token":
        fields.append(("refresh_token", _needed(members, "refresh_token")))
    elif kind == _EXCHANGE:
        if "subject" not in members:
            raise _missing("subject")
        for role in ("subject", "actor"):
            if role in members:
                token_type = members[role]["type"]
                full = token_type if ":" in token_type else _TOKEN_TYPE + token_type
                fields += [(f"{role}_token", members[role]["token"]), (f"{role}_token_type", full)]
    return fields + _wishes(members)


def _refreshing(members: Mapping[str, Any], refresh_token: str) -> list[tuple[str, str]]:
    return [("grant_type", "refresh_token"), ("refresh_token", refresh_token), *_wishes(members)]


def _wishes(members: Mapping[str, Any]) -> list[tuple[str, str]]:
    fields = [("scope", " ".join(members["scopes"]))] if members.get("scopes") else []
    return fields + [("audience", audience) for audience in members.get("audiences", ())]


def _client(grant: Grant, headers: dict[str, str]) -> list[tuple[str, str]]:
    """How the client says who it is: fields for the request, or a header."""
    client = grant.members.get("client", {})
    way = client.get("authentication")
    if way is None:
        way = "client_secret_post"
        if "secret" not in client:
            way = "private_key_jwt" if client.keys() & {"assertion", "key"} else "none"
        elif grant.ways and way not in grant.ways and "client_secret_basic" in grant.ways:
            way = "client_secret_basic"
    if way == "none":
        return [("client_id", client["id"])] if "id" in client else []
    identity = _needed(client, "id", "client/")
    if way == "client_secret_basic":
        pair = f"{quote_plus(identity)}:{quote_plus(_needed(client, 'secret', 'client/'))}"
        headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        return []
    if way == "client_secret_post":
        return [("client_id", identity), ("client_secret", _needed(client, "secret", "client/"))]
    assertion = client.get("assertion") or client_assertion(client, way, str(grant.endpoint))
    return [("client_id", identity), ("client_assertion_type", _ASSERTION_TYPE), ("client_assertion", assertion)]


def _granted(document: Mapping[str, Any], issuers: frozenset[str]) -> Granted:
    token = document.get("access_token")
    if not isinstance(token, str) or not token:
        raise Fault(ProblemType.COMMUNICATION, 502, "The authority's answer has no token")
    if str(document.get("token_type", "bearer")).lower() not in ("bearer", "n_a"):
        raise AuthenticationFailed("The authority gives tokens of another kind", "only bearer tokens can be used")
    claims = _claims(token)
    if issuers:
        named = claims.get("iss")
        if not isinstance(named, str) or named.rstrip("/") not in issuers:
            raise AuthenticationFailed("The token is not from an accepted issuer", "see `issuers` of the policy")
    refresh_token = document.get("refresh_token")
    return Granted(token, _life_s(document, claims), refresh_token if isinstance(refresh_token, str) else "")


def _life_s(document: Mapping[str, Any], claims: Mapping[str, Any]) -> float | None:
    told, expires = document.get("expires_in"), claims.get("exp")
    if isinstance(told, str) and told.isascii() and told.isdigit():
        told = int(told[:18])
    if isinstance(told, int | float) and not isinstance(told, bool):
        return min(max(float(told), 0.0), _LONGEST_LIFE_S)
    if isinstance(expires, int | float) and not isinstance(expires, bool):
        return min(max(float(expires) - time.time(), 0.0), _LONGEST_LIFE_S)
    return None


def _claims(token: str) -> dict[str, Any]:
    """What a token says of itself, if it is a JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        text = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except ValueError:
        return {}
    return _json(text)


def _json(text: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _object(fields: list[tuple[str, str]]) -> dict[str, Any]:
    """The fields for an authority that takes JSON; a name that stands several times becomes an array."""
    document: dict[str, Any] = {}
    for name, value in fields:
        before = document.get(name)
        if before is None:
            document[name] = value
        else:
            document[name] = [*(before if isinstance(before, list) else [before]), value]
    return document


def _needed(members: Mapping[str, Any], name: str, place: str = "") -> str:
    value = members.get(name)
    if not isinstance(value, str) or not value:
        raise _missing(place + name)
    return value


def _missing(name: str) -> AuthenticationFailed:
    detail = f"its grant or its client's authentication needs /{name}"
    return AuthenticationFailed("The authentication policy cannot be used", detail, ProblemType.CONFIGURATION, 400)
