"""An OAuth 2.0 and OpenID Connect authority of the tests' own, with a resource that takes its tokens."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

__all__ = ["Authority", "jwt_of"]


def jwt_of(claims: dict[str, Any]) -> str:
    """A token that says this of itself; nobody checks its signature."""
    parts = [{"alg": "none"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


@dataclass
class Authority:
    """What it was asked, and what it answers. Tokens are `token-1`, `token-2`, … unless `make` says otherwise."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    """Fields of each token request; `_basic` is the pair of an Authorization header, `_type` the content type."""
    accepted: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    """The Authorization headers that the resource saw."""
    discoveries: int = 0
    life_s: Any = 3600
    refresh_tokens: bool = False
    issuer: str = ""
    ways: list[str] | None = None
    make: Callable[[int], str] = lambda number: f"token-{number}"
    answer: Callable[[dict[str, Any]], Response | None] = lambda fields: None
    """A different answer to a token request, if any."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def app(self) -> Starlette:
        """To be served by `web_server`."""
        return Starlette(
            routes=[
                Route("/realm/oauth2/token", self._token, methods=["POST"]),
                Route("/realm/own/token", self._token, methods=["POST"]),
                Route("/realm/.well-known/openid-configuration", self._discovery),
                Route("/resource", self._resource, methods=["GET", "POST"]),
            ]
        )

    async def _token(self, request: Request) -> Response:
        body, media = await request.body(), request.headers["content-type"]
        fields: dict[str, Any] = {}
        if media == "application/json":
            fields = json.loads(body)
        else:
            for name, value in parse_qsl(body.decode(), strict_parsing=True):
                fields[name] = value if name not in fields else [fields[name], value]
        fields["_type"], fields["_path"] = media, request.url.path
        if "authorization" in request.headers:
            pair = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode().split(":")
            fields["_basic"] = [unquote_plus(part) for part in pair]
        self.requests.append(fields)
        await self.gate.wait()
        different = self.answer(fields)
        if different is not None:
            return different
        token = self.make(len(self.requests))
        self.accepted.add(token)
        given: dict[str, Any] = {"access_token": token, "token_type": "Bearer"}
        if self.life_s is not None:
            given["expires_in"] = self.life_s
        if self.refresh_tokens:
            given["refresh_token"] = f"refresh-{len(self.requests)}"
        return JSONResponse(given)

    async def _discovery(self, request: Request) -> Response:
        self.discoveries += 1
        base = str(request.base_url).rstrip("/") + "/realm"
        document: dict[str, Any] = {"issuer": self.issuer or base, "token_endpoint": f"{base}/own/token"}
        if self.ways is not None:
            document["token_endpoint_auth_methods_supported"] = self.ways
        return JSONResponse(document)

    async def _resource(self, request: Request) -> Response:
        sent = request.headers.get("authorization", "")
        self.asked.append(sent)
        if sent.removeprefix("Bearer ") not in self.accepted:
            return JSONResponse({"error": "no"}, 401, {"www-authenticate": "Bearer"})
        return JSONResponse({"at": time.time(), "echo": sent})
