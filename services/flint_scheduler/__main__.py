"""`python -m flint_scheduler`."""

from __future__ import annotations

from flint_ops.lifecycle import run_service
from flint_scheduler.app import serve

if __name__ == "__main__":
    raise SystemExit(run_service("scheduler", serve, require=("cluster.internal_token", "postgres.dsn")))
