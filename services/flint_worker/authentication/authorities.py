"""Where a policy's tokens are requested: told by the policy (oauth2) or found by discovery (oidc)."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any, Final

import httpx
import orjson

from flint_core.problems import ProblemType
from flint_worker.authentication.grants import Grant
from flint_worker.authentication.policies import AuthenticationFailed, Policy
from flint_worker.executors.client import HttpClient, http_url
from flint_worker.executors.faults import Fault

__all__ = ["Authorities"]

_WELL_KNOWN: Final = "/.well-known/openid-configuration"
_DOCUMENT_S: Final = 3600.0
_FETCH_S: Final = 30.0
_REMEMBERED: Final = 100


class Authorities:
    """Remembers discovery documents for an hour, at most 100."""

    def __init__(self, client: HttpClient, document_bytes: int) -> None:
        self._client = client
        self._document_bytes = document_bytes
        self._documents: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()

    async def grant_for(self, policy: Policy) -> Grant:
        """What to request, and where. Raises AuthenticationFailed, or a Fault when discovery fails."""
        members = policy.members
        authority = http_url(members["authority"], "/authority")
        issuers = frozenset(issuer.rstrip("/") for issuer in members.get("issuers", ()))
        if policy.scheme == "oauth2":
            path = members.get("endpoints", {}).get("token", "/oauth2/token")
            return Grant(_below(authority, path), members, issuers, frozenset())
        base = str(authority).removesuffix(_WELL_KNOWN).rstrip("/")
        document = await self._document(base)
        issuer = document.get("issuer")
        named = issuer.rstrip("/") if isinstance(issuer, str) else ""
        # OpenID Connect Discovery 4.3: the issuer is the authority that was asked. A policy may name others.
        if named != base and named not in issuers:
            raise AuthenticationFailed("The authority is not who it should be", "its document names another issuer")
        endpoint = document.get("token_endpoint")
        if not isinstance(endpoint, str):
            raise AuthenticationFailed("The authority has no token endpoint", "its discovery document names none")
        url = http_url(endpoint, "token_endpoint")
        if authority.scheme == "https" and url.scheme != "https":
            raise AuthenticationFailed("The authority's token endpoint is not secure", "its scheme is not https")
        ways = document.get("token_endpoint_auth_methods_supported")
        known = frozenset(way for way in ways if isinstance(way, str)) if isinstance(ways, list) else frozenset()
        return Grant(url, members, issuers, known)

    async def _document(self, base: str) -> dict[str, Any]:
        now = time.monotonic()
        remembered = self._documents.get(base)
        if remembered is not None and now - remembered[0] < _DOCUMENT_S:
            return remembered[1]
        url = http_url(base + _WELL_KNOWN, "/authority")
        answer = await self._client.exchange(
            "GET",
            url,
            headers={"accept": "application/json"},
            redirect=True,
            deadline_s=_FETCH_S,
            limit_bytes=self._document_bytes,
        )
        if answer.status != 200:
            detail = f"it answered {answer.status} for {_WELL_KNOWN}"
            raise Fault(ProblemType.COMMUNICATION, answer.status, "The authority's document cannot be fetched", detail)
        try:
            document = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            detail = "it is not a JSON object"
            raise Fault(ProblemType.COMMUNICATION, 502, "The authority's document cannot be read", detail)
        self._documents[base] = (now, document)
        self._documents.move_to_end(base)
        while len(self._documents) > _REMEMBERED:
            self._documents.popitem(last=False)
        return document


def _below(authority: httpx.URL, path: str) -> httpx.URL:
    """A path below the authority, or a URI of its own."""
    if "://" in path:
        return http_url(path, "/endpoints/token")
    return http_url(f"{str(authority).rstrip('/')}/{path.lstrip('/')}", "/endpoints/token")
