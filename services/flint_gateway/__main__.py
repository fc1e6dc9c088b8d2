"""`python -m flint_gateway --config FILE [--set section.key=value …]`."""

from __future__ import annotations

import sys

from flint_gateway.app import REQUIRED, main
from flint_ops.lifecycle import run_service

if __name__ == "__main__":
    sys.exit(run_service("gateway", main, require=REQUIRED))
