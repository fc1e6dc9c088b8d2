"""One Flint and one outside world for all tests of this folder: real processes and servers, started once."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("support.language")

from support.house import House  # noqa: E402
from support.houses import Houses  # noqa: E402
from support.language import SECRETS  # noqa: E402
from support.language_world import World, open_world  # noqa: E402

FAKE_ENGINE = Path(__file__).resolve().parents[2] / "support" / "fake_engine.py"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """What steps call, in the event loop of the tests."""
    async with open_world(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def settings(tmp_path_factory: pytest.TempPathFactory, world: World) -> dict[str, Any]:
    """Sections of the Flint's settings."""
    folder = tmp_path_factory.mktemp("engine")
    engine, state = folder / "docker", folder / "containers"
    state.mkdir()
    engine.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_ENGINE} {state} "$@"\n')
    engine.chmod(0o755)
    client = {"id": "from-a-secret", "secret": "s"}
    server = {"authority": f"{world.places['http']}/realm", "grant": "client_credentials", "client": client}
    database = folder / "orders.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:  # workers would race to choose its journal
        connection.execute("PRAGMA journal_mode = WAL")
    return {
        "worker": {
            "slots": 128,
            "mcp_commands": [sys.executable],
            "containers": {
                "engine": "docker",
                "command": str(engine),
                "grace_s": 0.1,
                "volumes": ["/tmp"],
                "publish_ports": True,
            },
        },
        "scheduler": {"sweep_interval_s": 1.0},
        "connections": {
            "orders": {"kind": "sql", "url": f"sqlite:///{database}"},
            "mail": {"kind": "smtp", "url": f"smtp://{world.places['smtp']}", "sender": "Shop <shop@example.com>"},
        },
        "secrets": {**SECRETS, "server": json.dumps(server)},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(houses: Houses, settings: dict[str, Any]) -> House:
    return await houses.get("language", **settings)
