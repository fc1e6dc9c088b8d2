"""A function worker as a process of its own, to be killed: `function_server.py GATEWAY KEY FOLDER NAME SILENCE_S`.

Serves `tests/held:1.0.0`, whose calls append a line to FOLDER/calls.log, then wait until FOLDER/gate exists and answer
with the process's name.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from flint_sdk import FunctionContext, FunctionWorker, function


def main() -> None:
    gateway, key, folder, name, silence_s = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], float(sys.argv[5])

    @function(name="tests/held", version="1.0.0", heartbeat_timeout_s=silence_s)
    async def held(context: FunctionContext, number: int = 0) -> dict[str, str | int]:
        with (folder / "calls.log").open("a") as log:
            log.write(f"{name} {context.idempotency_key} {context.dispatch} {number}\n")
        while not (folder / "gate").exists():
            await asyncio.sleep(0.02)
        return {"by": name, "number": number, "dispatch": context.dispatch}

    FunctionWorker([held], address=gateway, key=key, name=name, concurrency=4, drain_s=5).run()


if __name__ == "__main__":
    main()
