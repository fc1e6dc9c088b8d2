"""One nats-server with JetStream, and its users: one per role, each with the subjects that its work needs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flint_stack.child import WAVE_SERVERS, ChildSpec
from flint_stack.errors import ProbeFailed
from flint_stack.probes import http_get
from flint_stack.servers.programs import nats_program

__all__ = ["PERMISSIONS", "NatsServer", "NatsUser"]

_MIB, _GIB = 2**20, 2**30

_INBOX = "_INBOX.>"
# Answers to flow control and (unused, but harmless) acknowledgements of a role's own consumers.
_CONSUMING = ["$JS.FC.>", "$JS.ACK.>"]
# Calls of custom functions: workers offer them, gateways take them for their function workers.
_FUNCTIONS_WORKER = {
    "publish": ["flint.functions.offer.>", "flint.functions.gateway.*"],
    "subscribe": ["flint.functions.free.>", "flint.functions.caller.*"],
}
_FUNCTIONS_GATEWAY = {
    "publish": ["flint.functions.free.>", "flint.functions.caller.*", "flint.functions.registered"],
    "subscribe": ["flint.functions.offer.>", "flint.functions.gateway.*", "flint.functions.registered"],
}

PERMISSIONS: Mapping[str, Mapping[str, list[str]]] = {
    # Diagnosis and tests.
    "operator": {"publish": ["flint.>", "$JS.>", _INBOX], "subscribe": ["flint.>", "$JS.>", _INBOX]},
    # Hears what changed, tells owners what it is interested in; has no business with JetStream.
    "gateway": {
        "publish": [
            "flint.owner.>",
            "flint.payloads",
            "flint.lifecycle.interest",
            *_FUNCTIONS_GATEWAY["publish"],
            _INBOX,
        ],
        "subscribe": [
            "flint.watchers.>",
            "flint.hints.>",
            "flint.owners",
            "flint.resets",
            "flint.backlog",
            "flint.owner.>",
            "flint.events.stored.*",
            "flint.lifecycle.of.*",
            *_FUNCTIONS_GATEWAY["subscribe"],
            _INBOX,
        ],
    },
    # Owns streams, seals journals, dispatches, answers workers and gateways.
    "scheduler": {"publish": ["flint.>", "$JS.API.>", *_CONSUMING, _INBOX], "subscribe": ["flint.>", _INBOX]},
    "registry": {
        "publish": ["flint.fleet.>", _INBOX],
        "subscribe": ["flint.fleet.>", "flint.backlog", _INBOX],
    },
    # Appends to journals and reads jobs; cannot make, purge or delete a stream, nor speak as an owner.
    "worker": {
        "publish": [
            "flint.journal.>",
            "flint.hints.>",
            "flint.definitions.*",
            "flint.events.store",
            "flint.record",
            "flint.payloads",
            *_FUNCTIONS_WORKER["publish"],
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.*",
            "$JS.API.STREAM.MSG.GET.*",
            "$JS.API.DIRECT.GET.>",
            "$JS.API.CONSUMER.>",
            *_CONSUMING,
            _INBOX,
        ],
        "subscribe": ["flint.jobs.>", "flint.control.*", "flint.owners", *_FUNCTIONS_WORKER["subscribe"], _INBOX],
    },
}


@dataclass(frozen=True, slots=True)
class NatsUser:
    """One user; `role` names its entry in PERMISSIONS."""

    role: str
    password: str


@dataclass(frozen=True, slots=True)
class NatsServer:
    """An embedded nats-server below `directory` (its configuration file and JetStream's store), on 127.0.0.1."""

    directory: Path
    port: int
    monitor_port: int
    users: tuple[NatsUser, ...]
    store_bytes: int = 64 * _GIB
    memory_bytes: int = _GIB
    """Where its garbage collector becomes eager; nothing fails beyond it."""

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor(self) -> str:
        """HTTP address of its own figures."""
        return f"127.0.0.1:{self.monitor_port}"

    @property
    def store_dir(self) -> Path:
        """JetStream's store."""
        return self.directory / "jetstream"

    async def ready(self) -> None:
        """Ready means that JetStream has recovered its streams and the client port is open."""
        status, body = await http_get(self.monitor, "/healthz")
        if status != 200:
            raise ProbeFailed(f"NATS at {self.url} says it is not healthy: {body.decode(errors='replace').strip()}")

    async def before_start(self) -> None:
        """Writes the configuration file (0600: it holds the users' passwords)."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._config_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(self._configuration(), file, indent=1)  # its configuration language contains JSON

    def spec(self) -> ChildSpec:
        """The child."""
        return ChildSpec(
            name="nats",
            argv=(str(nats_program()), "-c", str(self._config_path)),
            env={"GOMEMLIMIT": str(self.memory_bytes)},
            wave=WAVE_SERVERS,
            address=self.url,
            ops_address=self.monitor,
            ready=self.ready,
            before_start=self.before_start,
            ready_deadline_s=30.0,
            stop_deadline_s=10.0,
        )

    @property
    def _config_path(self) -> Path:
        return self.directory / "nats.json"

    def _configuration(self) -> dict[str, Any]:
        return {
            "server_name": "flint",
            "host": "127.0.0.1",
            "port": self.port,
            "http": self.monitor,
            "max_payload": 8 * _MIB,
            "max_pending": 256 * _MIB,
            "write_deadline": "10s",
            "jetstream": {
                "store_dir": str(self.store_dir),
                "max_memory_store": 256 * _MIB,
                "max_file_store": self.store_bytes,
            },
            "authorization": {
                "timeout": 5,
                "users": [
                    {
                        "user": user.role,
                        "password": user.password,
                        "permissions": {
                            direction: {"allow": subjects} for direction, subjects in PERMISSIONS[user.role].items()
                        },
                    }
                    for user in self.users
                ],
            },
        }
