"""Ties a child to its supervisor and becomes the child: `python -I -S exec_child.py SUPERVISOR SIGNAL PROGRAM ...`.

Run as a script of its own, because the supervisor has threads and may not run Python between fork and exec. Where the
kernel knows PR_SET_PDEATHSIG, the child gets SIGNAL when the supervisor dies in whatever way; elsewhere nothing is tied
and the state file alone lets the next start find what was left. The process id stays the same through the exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arms the signal, checks that the supervisor is still there, replaces itself."""
    supervisor, number, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != supervisor:  # it died before the signal was armed
            sys.exit(1)
    # An interpreter ignores SIGPIPE, and what is ignored stays ignored through an exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(command[0], command)  # noqa: S606 - no shell on purpose


if __name__ == "__main__":
    main()
