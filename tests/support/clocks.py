"""Wall clocks of single processes that jump: real processes of a stack, whose Python is told another time.

    clocks = Clocks(tmp_path)
    async with running_stack(tmp_path, environ=clocks.environ()) as stack:
        clocks.jump("worker-1", hours=6)

`time.time()` and `time.time_ns()` of the process so named are that much ahead (or behind) from then on; boot-time and
monotonic clocks go on, as they do when somebody sets a machine's date. gRPC is told the truth: it gives its deadlines
to native code, which looks at the machine's clock, and the two must not differ.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["Clocks"]

_HOOK = """
import os, sys, time

def hook(folder):
    real, real_ns = time.time, time.time_ns

    def ahead_s():
        try:
            # Looked up at each call: a fork of another process has another command than that had.
            return int(os.readlink(os.path.join(folder, os.path.basename(sys.orig_argv[-1]).partition(".")[0])))
        except OSError:
            return 0

    def told():
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return real() + (0 if caller.startswith("grpc") else ahead_s())

    time.time = told
    time.time_ns = lambda: real_ns() + ahead_s() * 1_000_000_000

if "CLOCKS_OF_TESTS" in os.environ:
    hook(os.environ["CLOCKS_OF_TESTS"])
"""


class Clocks:
    """How far ahead the clocks of a stack's processes are. A link's target is read at each look: atomic and cheap."""

    def __init__(self, folder: Path) -> None:
        self._clocks, self._hook = folder / "clocks", folder / "clock-hook"
        self._clocks.mkdir()
        self._hook.mkdir()
        (self._hook / "sitecustomize.py").write_text(_HOOK, encoding="utf-8")

    def environ(self) -> dict[str, str]:
        """This process's environment, with the hook for its children."""
        path = os.pathsep.join(part for part in (str(self._hook), os.environ.get("PYTHONPATH", "")) if part)
        return {**os.environ, "PYTHONPATH": path, "CLOCKS_OF_TESTS": str(self._clocks)}

    def jump(self, process: str, *, hours: int) -> None:
        """Sets a process's clock so many hours ahead of the truth; 0: right again."""
        link = self._clocks / process
        fresh = link.with_name(f"{process}.fresh")
        fresh.symlink_to(str(hours * 3600))
        fresh.replace(link)
