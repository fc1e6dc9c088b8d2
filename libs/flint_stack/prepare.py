"""`python -m flint_stack.prepare`: brings the database to this build's schema and knows the local admin key.

A process of its own, so that the supervisor stays small; it begins when PostgreSQL answers. Exit code 1: the reason is
on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from flint_ops.config import Arguments, ConfigError, Settings, load
from flint_stack.errors import StackError
from flint_stack.layout import Layout
from flint_store.engine import create_engine
from flint_store.errors import StoreError
from flint_store.identity import ensure_local_admin_key
from flint_store.migrate import upgrade

__all__ = ["main"]

_KEY_DEADLINE_S = 20.0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m flint_stack.prepare", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    layout = Layout.at(parser.parse_args().data_dir)
    try:
        settings = load(Arguments(layout.config_file, ()), environ={}, require=("postgres.dsn",))
        upgrade(settings.postgres.dsn.get_secret_value(), settings.cluster.shard_groups)
        asyncio.run(_ensure_key(layout, settings))
    except (ConfigError, StoreError, StackError, TimeoutError) as error:
        sys.stderr.write(f"{error or 'PostgreSQL did not answer in time'}\n")
        return 1
    return 0


async def _ensure_key(layout: Layout, settings: Settings) -> None:
    engine = create_engine(settings.postgres, "reading", pool_size=1)
    try:
        async with asyncio.timeout(_KEY_DEADLINE_S):
            key = layout.load_admin_key()
            stored = await ensure_local_admin_key(engine, key.key_id, key.secret_hash)
            if stored.HasField("revoke_time"):  # revoked stays revoked: whoever may read this directory gets a new one
                key = layout.renew_admin_key()
                await ensure_local_admin_key(engine, key.key_id, key.secret_hash)
    finally:
        await engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
