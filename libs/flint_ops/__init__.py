"""Configuration, logs, metrics, health, the clocks and the life of a service."""

from __future__ import annotations

import os

# Read by gRPC's core when it is first imported, which every service does after this package (a test sees to it). The
# core would write lines of its own to standard error, which is for JSON only; what matters arrives as statuses. Its
# fork handlers are for processes that fork without exec, which Flint never does.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
