"""The supervisor's side of `flint_stack.prepare`: begins the process, lets it go on, remembers what it has done."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from flint_ops.config import Settings
from flint_stack.errors import StackError
from flint_stack.layout import Layout, write_private

__all__ = ["begin_preparation", "finish_preparation", "is_prepared"]

_DEADLINE_S = 120.0


async def begin_preparation(layout: Layout, environ: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Starts the process; it loads what it needs and waits for `finish_preparation`."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "flint_stack.prepare",
        "--data-dir",
        str(layout.root),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environ),
        start_new_session=True,
    )


async def finish_preparation(layout: Layout, settings: Settings, process: asyncio.subprocess.Process) -> None:
    """Lets it migrate, now that PostgreSQL is there, and waits for its end. Raises StackError with what it said."""
    try:
        async with asyncio.timeout(_DEADLINE_S):
            _, said = await process.communicate(b"go\n")
    except TimeoutError:
        raise StackError(f"The database's schema was not ready within {_DEADLINE_S:g} s.") from None
    if process.returncode != 0:
        reason = said.decode(errors="replace").strip()
        raise StackError(f"The database cannot be prepared: {reason or f'exit code {process.returncode}'}")
    write_private(_mark_file(layout), _mark(settings))


def is_prepared(layout: Layout, settings: Settings) -> bool:
    """Whether this build prepared this database from here before. No proof: it decides only what may overlap."""
    path = _mark_file(layout)
    return path.exists() and path.read_text() == _mark(settings)


def _mark_file(layout: Layout) -> Path:
    return layout.state_file.with_name("prepared")


def _mark(settings: Settings) -> str:
    store = importlib.util.find_spec("flint_store")
    if store is None or store.origin is None:
        raise StackError("Flint's package flint_store is not installed.")
    migrations = sorted(path.name for path in (Path(store.origin).parent / "migrations" / "versions").glob("*.py"))
    parts = [
        importlib.metadata.version("flint-engine"),
        settings.postgres.dsn.get_secret_value(),
        str(settings.cluster.shard_groups),
        *migrations,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
