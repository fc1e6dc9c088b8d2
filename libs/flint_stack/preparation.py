"""The supervisor's side of `flint_stack.prepare`: runs it, remembers what it has done."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import importlib.util
import os
import signal
import sys
from pathlib import Path

from flint_ops.config import Settings
from flint_stack.child import ChildSpec
from flint_stack.errors import StackError
from flint_stack.launching import Launcher
from flint_stack.layout import Layout, write_private
from flint_stack.logfiles import log_tail, open_log

__all__ = ["is_prepared", "prepare"]

_DEADLINE_S = 120.0


async def prepare(layout: Layout, settings: Settings, launcher: Launcher) -> None:
    """Brings the database, which must answer, to this build's schema. Raises StackError with what the process said."""
    path = layout.log_file("prepare")
    since = path.stat().st_size if path.exists() else 0
    log = open_log(path)
    try:
        process = await launcher.launch(_spec(layout), log)
    finally:
        os.close(log)
    try:
        async with asyncio.timeout(_DEADLINE_S):
            code = await process.wait()
    except TimeoutError:
        raise StackError(f"The database's schema was not ready within {_DEADLINE_S:g} s.") from None
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
    if code != 0:
        reason = log_tail(path, since=since)
        raise StackError(f"The database cannot be prepared: {reason or f'exit code {code}'}")
    write_private(_mark_file(layout), _mark(settings))


def _spec(layout: Layout) -> ChildSpec:
    command = (sys.executable, "-m", "flint_stack.prepare", "--data-dir", str(layout.root))
    return ChildSpec("prepare", command, forks=True)


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
