"""`python -m flint_worker.host --socket PATH --logs FOLDER --workers N --config FILE [--set section.key=value …]`.

The configuration is the one that each worker gets, its id, pool and region apart.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from flint_ops import logging as flint_logging
from flint_ops.config import ConfigError, load, parse_args
from flint_worker.host.server import HostServer, listen_at
from flint_worker.host.spawn import adopt_orphans, preload
from flint_worker.host.workers import Workers

_MARGIN_S = 5.0


def main() -> int:
    """Runs the host to its end; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flint_worker.host", allow_abbrev=False)
    parser.add_argument("--socket", type=Path, required=True, help="where registries reach it")
    parser.add_argument("--logs", type=Path, required=True, help="folder of the workers' logs")
    parser.add_argument("--workers", type=int, default=64, help="most workers at the same time")
    own, rest = parser.parse_known_args()
    try:
        settings = load(parse_args(rest, program="python -m flint_worker.host"), require=("cluster.internal_token",))
    except ConfigError as error:
        lines = "\n".join(f"  {problem}" for problem in error.problems)
        sys.stderr.write(f"The worker host cannot start: its configuration is wrong.\n{lines}\n")
        return 2
    flint_logging.configure(settings.log, "worker-host", f"worker-host-{os.getpid()}")
    adopt_orphans()
    preload()
    grace_s = settings.worker.drain_s + _MARGIN_S
    server = HostServer(
        listen_at(own.socket.absolute()), lambda close: Workers(rest, own.logs, own.workers, grace_s, close)
    )
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
