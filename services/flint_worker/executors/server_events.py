"""Server-sent events: a stream of an HTTP answer cut into events."""

from __future__ import annotations

from collections.abc import AsyncIterator

__all__ = ["EventTooLarge", "server_events"]


class EventTooLarge(Exception):
    """The stream, or one event of it, is larger than allowed."""


async def server_events(chunks: AsyncIterator[bytes], limit_bytes: int) -> AsyncIterator[str]:
    """The data of each event, in order. Raises EventTooLarge when the whole stream passes the limit.

    After the HTML standard's parsing rules; names, ids and retry times of events are not needed here and left out.
    """
    size = 0
    begun: list[bytes] = []  # of a line whose end has not come
    data: list[bytes] = []
    async for chunk in chunks:
        size += len(chunk)
        if size > limit_bytes:
            raise EventTooLarge
        begun.append(chunk)
        if b"\n" not in chunk and b"\r" not in chunk and not begun[0].endswith(b"\r"):
            continue
        lines, rest = _lines(b"".join(begun))
        begun = [rest] if rest else []
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif line == b"data":
                data.append(b"")
            elif not line and data:
                yield b"\n".join(data).decode("utf-8", "replace")
                data = []


def _lines(text: bytes) -> tuple[list[bytes], bytes]:
    """Complete lines, and what follows the last one. A return at the very end may be half of a line's end: it waits."""
    held = b"\r" if text.endswith(b"\r") else b""
    text = text.removesuffix(b"\r")
    lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return lines[:-1], lines[-1] + held
