"""Which headers a request needs by its policy, and what to do when they are not accepted."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import httpx

from flint_ops.config import Settings
from flint_worker.authentication.digest import DigestMemory
from flint_worker.authentication.policies import AuthenticationFailed, read_policy
from flint_worker.authentication.tokens import TokenCache
from flint_worker.executors.client import HttpClient

__all__ = ["Authenticator", "PolicyAuth"]


class Authenticator:
    """One per worker: its memory of tokens and challenges serves all calls. Many requests at once."""

    def __init__(self, client: HttpClient, settings: Settings) -> None:
        self._tokens = TokenCache(client, settings.worker.token_cache_entries, settings.limits.document_bytes)
        self._digests = DigestMemory()

    async def headers(
        self, policy: Mapping[str, Any], method: str, uri: str, body: bytes | None = b""
    ) -> dict[str, str]:
        """What to add to a request: `{"authorization": …}`, or nothing (digest, before its first challenge).

        `uri` is the whole address, its query included; `method`, `uri` and `body` matter for digest alone (None: a
        body that cannot be hashed). Raises AuthenticationFailed; a Fault when the authority cannot be reached.
        """
        scheme, members, key = checked = read_policy(policy)
        if scheme == "basic":
            return {"authorization": _basic(members["username"], members["password"])}
        if scheme == "bearer":
            return {"authorization": _bearer(members["token"])}
        if scheme == "digest":
            return self._digests.headers(key, members, method, uri, body)
        return {"authorization": _bearer(await self._tokens.token(checked))}

    async def challenged(
        self,
        policy: Mapping[str, Any],
        method: str,
        uri: str,
        body: bytes | None,
        sent: str,
        challenges: Sequence[str],
    ) -> dict[str, str] | None:
        """After a 401: headers for one more attempt, or None when another would end the same.

        `sent` is the Authorization header of the refused request (empty for none), `challenges` the values of its
        answer's WWW-Authenticate headers. A token that was refused is forgotten and fetched anew. Raises as `headers`.
        """
        scheme, members, key = checked = read_policy(policy)
        if scheme == "digest":
            return self._digests.answer(key, members, method, uri, body, sent, challenges)
        if scheme in ("oauth2", "oidc"):
            self._tokens.refused(key, sent.removeprefix("Bearer "))
            return {"authorization": _bearer(await self._tokens.token(checked))}
        return None

    def auth(self, policy: Mapping[str, Any]) -> PolicyAuth:
        """The policy for clients of httpx."""
        return PolicyAuth(self, policy)

    async def close(self) -> None:
        """Ends fetches under way."""
        await self._tokens.close()


class PolicyAuth(httpx.Auth):
    """One policy for httpx: adds headers, and sends once more after a 401 that can be answered."""

    def __init__(self, authenticator: Authenticator, policy: Mapping[str, Any]) -> None:
        self._authenticator = authenticator
        self._policy = policy
        self.used: set[str] = set()
        """The credentials that were sent: what must not come back in an answer."""

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Raises AuthenticationFailed, or a Fault when the authority cannot be reached."""
        body = await request.aread() if isinstance(request.stream, httpx.ByteStream) else None
        uri = str(request.url)
        self._add(request, await self._authenticator.headers(self._policy, request.method, uri, body))
        response = yield request
        if response.status_code != 401:
            return
        again = await self._authenticator.challenged(
            self._policy,
            request.method,
            uri,
            body,
            request.headers.get("authorization", ""),
            response.headers.get_list("www-authenticate"),
        )
        if again is not None:
            self._add(request, again)
            yield request

    def _add(self, request: httpx.Request, headers: Mapping[str, str]) -> None:
        request.headers.update(headers)
        self.used.update(value.partition(" ")[2] for value in headers.values())


def _basic(username: str, password: str) -> str:
    if ":" in username:
        raise AuthenticationFailed("Basic authentication is not possible", "the user's name holds a colon", status=400)
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _bearer(token: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise AuthenticationFailed("The token cannot be sent", "it holds characters that no header may have")
    return f"Bearer {token}"
