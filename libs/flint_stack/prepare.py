"""`python -m flint_stack.prepare`: brings the database to this build's schema and knows the local admin key.

A process of its own, so that the supervisor stays small. It imports what it needs while the servers start, then waits
for one line on standard input that says that PostgreSQL is there. Exit code 1: the reason is on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
from pathlib import Path

from flint_ops.config import Arguments, ConfigError, load
from flint_store.engine import create_engine
from flint_store.errors import StoreError
from flint_store.identity import ensure_local_admin_key
from flint_store.migrate import upgrade

from flint_stack.layout import parse_key

__all__ = ["main"]

_KEY_DEADLINE_S = 20.0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m flint_stack.prepare", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--admin-key", type=Path, required=True)
    arguments = parser.parse_args()
    if not sys.stdin.readline():
        return 1  # the supervisor is gone
    try:
        settings = load(Arguments(arguments.config, ()), require=("postgres.dsn",))
        upgrade(settings.postgres.dsn.get_secret_value(), settings.cluster.shard_groups)
        asyncio.run(_ensure_key(arguments))
    except (ConfigError, StoreError, TimeoutError) as error:
        sys.stderr.write(f"{error or 'PostgreSQL did not answer in time'}\n")
        return 1
    return 0


async def _ensure_key(arguments: argparse.Namespace) -> None:
    settings = load(Arguments(arguments.config, ()))
    engine = create_engine(settings.postgres, "reading")
    try:
        async with asyncio.timeout(_KEY_DEADLINE_S):
            key_id, secret = parse_key(arguments.admin_key.read_text())
            await ensure_local_admin_key(engine, key_id, hashlib.sha256(secret.encode()).digest())
    finally:
        await engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
