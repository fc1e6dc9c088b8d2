"""The `flint` command."""

import os

# gRPC's core writes notes such as «Got goaway» to stderr by itself, between our own words.
# It reads this when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
