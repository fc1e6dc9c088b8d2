"""A server of the Model Context Protocol, made with the official SDK: for tests, over stdio or HTTP.

python tests/support/mcp_server.py     serves standard input and output
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

__all__ = ["make_server"]


def make_server() -> MCPServer:
    """A server with a few tools, a resource and a prompt."""
    server = MCPServer("tests")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    @server.tool()
    def fail(text: str) -> str:
        """Fails."""
        raise ToolError(text)

    @server.tool()
    def large(size: int) -> str:
        """Answers with many letters."""
        return "x" * size

    @server.tool()
    async def slow() -> str:
        """Never answers."""
        await asyncio.Event().wait()
        return ""

    @server.tool()
    def surroundings(ctx: Context[Any, Any]) -> dict[str, Any]:
        """What the server sees of its world and of the request."""
        meta = ctx.request_context.meta
        return {
            "environment": dict(os.environ),
            "group": os.getpgrp(),
            "pid": os.getpid(),
            "folder": os.getcwd(),  # noqa: PTH109
            "meta": dict(meta) if meta is not None else {},
        }

    @server.resource("shop://opening-hours")
    def opening_hours() -> str:
        """When the shop is open."""
        return "always"

    @server.prompt()
    def greet(name: str) -> str:
        """How to greet."""
        return f"Greet {name}"

    return server


if __name__ == "__main__":
    print("a line that is no message", flush=True)
    if sys.argv[1:] == ["die"]:
        sys.exit(3)
    make_server().run("stdio")
