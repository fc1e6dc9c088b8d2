"""Failpoints: named places at which a test may end or hold a process, so that it is caught between two steps.

Off, unless the environment variable FLINT_FAILPOINTS names a folder when the process starts; nothing that listens can
arm them. A process that comes to the point `commit.fold.after` looks there for a file of that name. In it stands what
to do and how often to pass first: `kill 3` ends the process (SIGKILL) at the fourth time it comes by, `stop 0` holds it
(SIGSTOP) at the first, until somebody continues it. Whoever acts takes the file away by renaming it to
`<name>.<process id>`: one process acts, once.

Points: `commit.<lane>.before` and `.after` around every commit of a scheduler; `append.before` and `.after` around what
goes to JetStream; `etcd.<request>.before` and `.after` (`PutRequest`, `TxnRequest`, …) around what is asked of etcd;
`takeover.won` between a scheduler's winning the keys of groups and its commit that takes them; `call.before` and
`.after` around a worker's side effects; `start.before` and `.after` around what a gateway asks a scheduler for.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

__all__ = ["ARMED", "VARIABLE", "reach"]

VARIABLE: Final = "FLINT_FAILPOINTS"
_FOLDER: Final = os.environ.get(VARIABLE, "")

ARMED: Final = bool(_FOLDER)
"""Whether points are looked at in this process: `if ARMED: reach(…)` costs nothing where they are not."""

_ACTIONS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_passed: dict[str, int] = {}


def reach(name: str) -> None:
    """This process is at the point `name`. Blocks while it is held there; does not return when it is ended."""
    file = Path(_FOLDER, name)
    try:
        action, passes = file.read_text(encoding="ascii").split()
    except OSError:
        return  # not armed now
    times = _passed.get(name, 0)
    if times < int(passes):
        _passed[name] = times + 1
        return
    try:
        file.rename(f"{file}.{os.getpid()}")
    except FileNotFoundError:
        return  # another process was first
    _passed.pop(name, None)
    os.kill(os.getpid(), _ACTIONS[action])
