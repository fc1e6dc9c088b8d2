"""`python -m flint_registry --config FILE [--set section.key=value …]`."""

from __future__ import annotations

import sys

from flint_ops.lifecycle import run_service
from flint_registry.app import serve

if __name__ == "__main__":
    sys.exit(run_service("registry", serve, require=("cluster.internal_token", "postgres.dsn")))
