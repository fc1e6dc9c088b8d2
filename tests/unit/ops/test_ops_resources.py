"""Reading what definitions refer to: bounds, redirects, addresses, credentials; and compiling with it."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager

import pytest

from flint_core.definition import DefinitionLimits, Resource, Severity
from flint_ops.resources import ResourceFailed, ResourceLimits, ResourceReader, compile_with_resources

HEAD = "document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}\n"


class Server:
    """A little HTTP server: `pages` by path, each a status, headers and a body; `seen` is what was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.root = ""
        self.silent = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            path = head[0].split(" ")[1]
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            self.seen.append((path, headers))
            if path == "/silent":
                await self.silent.wait()
            status, more, body = self.pages.get(path, (404, {}, b""))
            lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in more.items()]
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as some tests want it to
        finally:
            writer.close()


@asynccontextmanager
async def serving(limits=None):
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.root = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    reader = ResourceReader(limits or ResourceLimits(allow_private=True))
    try:
        yield server, reader
    finally:
        server.silent.set()
        await reader.close()
        listener.close()
        await listener.wait_closed()


async def test_a_text_comes_with_its_credentials_and_redirects_lose_them():
    async with serving() as (server, reader), serving() as (other, _):
        server.pages["/a"] = (302, {"Location": "/b"}, b"")
        server.pages["/b"] = (301, {"Location": f"{other.root}/c"}, b"")
        other.pages["/c"] = (200, {}, b"found")
        policy = {"basic": {"username": "u", "password": "pä"}}
        assert await reader.read(Resource(f"{server.root}/a", policy)) == b"found"
        wanted = f"Basic {base64.b64encode('u:pä'.encode()).decode()}".lower()
        assert [headers.get("authorization") for _, headers in server.seen] == [wanted, wanted]
        assert "authorization" not in other.seen[0][1]
        server.pages["/d"] = (200, {}, b"x")
        await reader.read(Resource(f"{server.root}/d", {"bearer": {"token": "T"}}))
        assert server.seen[-1][1]["authorization"] == "bearer t"


@pytest.mark.parametrize(
    ("path", "page", "words"),
    [
        ("/none", None, "status 404"),
        ("/large", (200, {}, b"x" * 2_000), "more than 1000 bytes"),
        ("/round", (302, {"Location": "/round"}, b""), "more than 5 redirects"),
        ("/file", (302, {"Location": "file:///etc/passwd"}, b""), "something else than http"),
        ("/nowhere", (302, {}, b""), "says not whereto"),
        ("/silent", None, "did not come within"),
    ],
)
async def test_what_does_not_come_is_told(path, page, words):
    async with serving(ResourceLimits(bytes=1_000, seconds=0.5, allow_private=True)) as (server, reader):
        if page is not None:
            server.pages[path] = page
        with pytest.raises(ResourceFailed, match=words):
            await reader.read(Resource(server.root + path))


async def test_private_addresses_and_files_are_refused_unless_allowed(tmp_path):
    async with serving(ResourceLimits()) as (server, reader):
        with pytest.raises(ResourceFailed, match="no public address"):
            await reader.read(Resource(f"{server.root}/x"))
        assert server.seen == []
        with pytest.raises(ResourceFailed, match="flint lint"):
            await reader.read(Resource(f"file://{tmp_path}/f.yaml"))
        with pytest.raises(ResourceFailed):
            await reader.read(Resource("http://[::1"))
    local = ResourceReader(ResourceLimits(files=True))
    (tmp_path / "f.yaml").write_text("set: {}")
    assert await local.read(Resource(f"file://{tmp_path}/f.yaml")) == b"set: {}"
    with pytest.raises(ResourceFailed, match="no file"):
        await local.read(Resource(f"file://{tmp_path}"))


async def test_a_definition_is_compiled_with_all_that_it_needs():
    async with serving() as (server, reader):
        server.pages["/functions/f/1.0.0/function.yaml"] = (200, {}, b"do: [{a: {call: 'g:1.0.0@c'}}]")
        server.pages["/functions/g/1.0.0/function.yaml"] = (200, {}, b"set: {x: 1}")
        source = HEAD + f"use: {{catalogs: {{c: {{endpoint: '{server.root}'}}}}}}\ndo: [{{t: {{call: 'f:1.0.0@c'}}}}]\n"
        compiled = await compile_with_resources(source, DefinitionLimits(), reader, asyncio.Lock())
        assert compiled.program is not None and compiled.findings == []
        server.pages.clear()
        compiled = await compile_with_resources(source, DefinitionLimits(), reader)
        assert compiled.program is None
        (finding,) = compiled.findings
        assert (finding.severity, finding.rule, finding.line) == (Severity.ERROR, "resource", 3)
        assert "cannot be read: its server answered with status 404" in finding.message


async def test_an_endless_chain_of_texts_ends():
    async with serving() as (server, reader):
        for n in range(20):
            body = f"do: [{{a: {{call: '{server.root}/{n + 1}'}}}}]".encode()
            server.pages[f"/{n}"] = (200, {}, body)
        source = HEAD + f"do: [{{t: {{call: '{server.root}/0'}}}}]\n"
        compiled = await compile_with_resources(source, DefinitionLimits(), reader)
        assert compiled.program is None and "more than 8 deep" in compiled.findings[0].message
