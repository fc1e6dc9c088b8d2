"""`python -m flint_worker --config FILE`."""

import sys

from flint_ops.lifecycle import run_service
from flint_worker.app import main

if __name__ == "__main__":
    sys.exit(run_service("worker", main, require=("cluster.internal_token",)))
