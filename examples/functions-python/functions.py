"""Custom functions in Python, typed by their signatures.

python functions.py          # serves until Ctrl-C; or: flint functions serve functions
flint apply workflow.yaml
flint run thumbnails --input '{"pictures": ["a.png", "b.png"]}' --watch
"""

from __future__ import annotations

import asyncio
import hashlib
import time

from pydantic import BaseModel, Field

from flint_sdk import FunctionContext, FunctionError, FunctionWorker, function


class Picture(BaseModel):
    """What is known of a picture."""

    name: str
    bytes: int = Field(ge=0)


class Thumbnail(BaseModel):
    name: str
    width: int
    digest: str


@function(name="examples/inspect", version="1.0.0")
async def inspect(name: str) -> Picture:
    """Looks a picture up."""
    await asyncio.sleep(0.1)  # as a store would take
    if not name.endswith(".png"):
        raise FunctionError("Not a picture", type="https://example.com/errors/not-a-picture", detail=name)
    return Picture(name=name, bytes=1000 * len(name))


@function(name="examples/thumbnail", version="1.2.0", heartbeat_timeout_s=10)
def thumbnail(picture: Picture, context: FunctionContext, width: int = 128) -> Thumbnail:
    """Makes a thumbnail; in a thread, as it is no async function."""
    for percent in range(0, 100, 20):
        context.progress(percent, f"scaling {picture.name}")
        if context.cancelled:
            break
        time.sleep(0.05)  # as scaling would take
    # The key is the same when this is repeated: a store that knows it would not keep the thumbnail twice.
    digest = hashlib.sha256(f"{context.idempotency_key}{picture.name}{width}".encode()).hexdigest()
    return Thumbnail(name=picture.name, width=width, digest=digest[:12])


if __name__ == "__main__":
    FunctionWorker([inspect, thumbnail], concurrency=8).run()
