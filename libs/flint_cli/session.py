"""What all commands share: where Flint is, the namespace, and the loop in which a command runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import typer

from flint_sdk import AsyncFlint

__all__ = ["Session", "session_of", "with_client"]

T = TypeVar("T")

_CALL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Session:
    """The options before the command. The key is read from FLINT_KEY or `.flint/admin.key`, never from an argument."""

    address: str | None = None
    namespace: str = "default"


def session_of(context: typer.Context) -> Session:
    """The session of a command."""
    session = context.find_object(Session)
    return session if session is not None else Session()


def with_client(context: typer.Context, command: Callable[[AsyncFlint], Awaitable[T]]) -> T:
    """Runs a command's coroutine with a client that is closed behind it."""
    session = session_of(context)

    async def run() -> T:
        client = AsyncFlint(session.address, namespace=session.namespace, timeout_s=_CALL_TIMEOUT_S)
        async with client:
            return await command(client)

    return asyncio.run(run())
