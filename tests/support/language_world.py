"""The outside of the language's tests: HTTP, gRPC, SMTP, MCP, A2A and an OAuth2 authority, all of them real servers."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from support.authority import Authority
from support.language_documents import DOCUMENTS, TEXTS
from support.language_servers import agent_routes, grpc_server, mcp_server
from support.web import web_server

__all__ = ["World", "open_world"]


@dataclass
class World:
    """Where things are, and what they saw."""

    places: dict[str, str] = field(default_factory=dict)
    authority: Authority = field(default_factory=Authority)
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    # --- HTTP

    async def echo(self, request: Request) -> Response:
        """What came, as JSON."""
        body = await request.body()
        headers = {name: ", ".join(request.headers.getlist(name)) for name in request.headers}
        form: Any = None
        if headers.get("content-type", "").startswith("multipart/"):
            form = {}
            async with request.form() as parts:
                for name, value in parts.multi_items():
                    form[name] = value if isinstance(value, str) else await _file(value)
        return JSONResponse(
            {
                "method": request.method,
                "path": request.url.path,
                "query": [[name, value] for name, value in request.query_params.multi_items()],
                "headers": headers,
                "body": None if form is not None else body.decode(errors="replace"),
                "form": form,
            }
        )

    async def status(self, request: Request) -> Response:
        return PlainTextResponse("no", int(request.path_params["code"]), {"retry-after": "0"})

    async def flaky(self, request: Request) -> Response:
        """The first calls by a name are answered 503."""
        name, failures = request.path_params["name"], int(request.path_params["failures"])
        self.counts[name] += 1
        if self.counts[name] <= failures:
            return PlainTextResponse("not yet", 503)
        return JSONResponse({"calls": self.counts[name], "key": request.headers.get("idempotency-key", "")})

    async def slow(self, request: Request) -> Response:
        await asyncio.sleep(20)
        return PlainTextResponse("late")

    async def bytes(self, request: Request) -> Response:
        return Response(b"\x00\x01\xff", media_type="application/octet-stream")

    async def empty(self, request: Request) -> Response:
        return Response(status_code=204)

    async def moved(self, request: Request) -> Response:
        return RedirectResponse("/echo/moved", 302)

    async def guarded(self, request: Request) -> Response:
        """Tells what it was shown, or refuses."""
        sent = request.headers.get("authorization", "")
        kind, _, content = sent.partition(" ")
        wanted = request.path_params["kind"]
        if kind.lower() != wanted:
            challenge = {"digest": 'Digest realm="shop", nonce="abc", qop="auth", algorithm=SHA-256'}
            return PlainTextResponse("who?", 401, {"www-authenticate": challenge.get(wanted, wanted)})
        if wanted == "basic":
            return JSONResponse({"as": base64.b64decode(content).decode().partition(":")[0]})
        if wanted == "digest":
            return JSONResponse({"as": content.partition('username="')[2].partition('"')[0]})
        return JSONResponse({"as": "bearer", "known": content == "t0ken-of-the-tests"})

    async def document(self, request: Request) -> Response:
        """A described API, or a text that definitions refer to."""
        path = request.path_params["path"]
        if path.startswith("guarded/"):
            path = path.removeprefix("guarded/")
            if not request.headers.get("authorization", "").startswith(("Basic ", "Bearer ")):
                return PlainTextResponse("who?", 401)
        if path in TEXTS:
            return PlainTextResponse(TEXTS[path])
        if path not in DOCUMENTS:
            return PlainTextResponse("no such document", 404)
        return JSONResponse(self.filled(DOCUMENTS[path]))

    def filled(self, value: Any) -> Any:
        """A document with the places put in."""
        if isinstance(value, dict):
            return {key: self.filled(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self.filled(part) for part in value]
        if isinstance(value, str):
            for place, text in self.places.items():
                value = value.replace(f"<{place}>", text)
        return value

    # --- SMTP

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("nobody"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        self.mails.append(message)
        self.recipients.append(list(envelope.rcpt_tos))
        return "250 OK"

    def mail(self, subject: str) -> EmailMessage:
        """The one mail with this subject."""
        (found,) = [mail for mail in self.mails if mail["subject"] == subject]
        return found


async def _file(value: UploadFile) -> dict[str, Any]:
    return {"filename": value.filename, "type": value.content_type, "text": (await value.read()).decode()}


@asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    """All servers but the brokers, on free ports, until the block is left."""
    world = World()
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
    async with AsyncExitStack() as stack:
        routes = [
            Route("/echo/{rest:path}", world.echo, methods=methods),
            Route("/status/{code}", world.status, methods=methods),
            Route("/flaky/{name}/{failures}", world.flaky, methods=methods),
            Route("/slow", world.slow),
            Route("/bytes", world.bytes),
            Route("/empty", world.empty),
            Route("/moved", world.moved, methods=methods),
            Route("/guarded/{kind}", world.guarded),
            Route("/documents/{path:path}", world.document),
            *world.authority.app.routes,
            *agent_routes(world.places),
        ]
        url = await stack.enter_async_context(web_server(Starlette(routes=routes)))
        world.places |= {"http": url, "port": url.rpartition(":")[2], "python": sys.executable}
        world.places["grpc"] = str(await stack.enter_async_context(grpc_server(folder)))
        world.places["mcp"] = await stack.enter_async_context(mcp_server())
        loop = asyncio.get_running_loop()
        smtp = await loop.create_server(lambda: SMTP(world, enable_SMTPUTF8=True, loop=loop), "127.0.0.1", 0)
        stack.callback(smtp.close)
        world.places["smtp"] = f"127.0.0.1:{smtp.sockets[0].getsockname()[1]}"
        yield world
