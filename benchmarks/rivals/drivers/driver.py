"""The Python side of a rival's driver: requests from stdin, answers to stdout. Runs in the rival's environment.

A driver module gives an object with `singly`, `batches`, `alone`, `fan` and `begin`, and calls `serve` with it. No
imports of Flint's: they are not installed there.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

Start = Callable[[], Awaitable[Any]]


async def singly(once: Start, runs: int, callers: int) -> dict[str, Any]:
    """Runs a second by concurrent callers, each waiting for its result before its next start."""
    left = runs

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await once()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return {"rate": runs / (time.perf_counter() - began)}


async def alone(once: Start, runs: int) -> dict[str, Any]:
    """Milliseconds of one run at a time."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        await once()
        times.append((time.perf_counter() - began) * 1000)
    return {"times": times}


async def begin(once: Start, runs: int, load_per_s: float) -> dict[str, Any]:
    """Milliseconds until the step begins. `once` answers when that was (Unix epoch, ms).

    With `load_per_s`, while so many other runs are started a second, whatever becomes of them meanwhile.
    """
    stop = asyncio.Event()
    loading = asyncio.create_task(_load(once, load_per_s, stop))
    times = []
    try:
        await asyncio.sleep(0.5 if load_per_s else 0)
        for _ in range(runs):
            began = time.time() * 1000
            times.append(await once() - began)
    finally:
        stop.set()
        await loading
    return {"times": times}


async def _load(once: Start, per_s: float, stop: asyncio.Event) -> None:
    """Runs started at a steady rate; returns when all have ended."""
    loop = asyncio.get_running_loop()
    began, begun = loop.time(), 0
    tasks: set[asyncio.Future[Any]] = set()
    while per_s and not stop.is_set():
        due = int((loop.time() - began) * per_s)
        while begun < due:
            task = asyncio.ensure_future(once())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            begun += 1
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)


async def serve(engine: Any) -> None:
    """Answer requests until stdin ends."""
    print(json.dumps({"ready": True}), flush=True)
    loop = asyncio.get_running_loop()
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        request = json.loads(line)
        what = getattr(engine, request.pop("what"), None)
        try:
            answer = {"error": "not measured"} if what is None else await what(**request)
        except Exception as error:  # told to whoever asked; the driver goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
