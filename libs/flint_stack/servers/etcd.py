"""One etcd node for leases and discovery. What it holds may be lost at any time: it is permission, not record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from flint_stack.child import WAVE_SERVERS, ChildSpec
from flint_stack.errors import ProbeFailed
from flint_stack.probes import http_get
from flint_stack.servers.programs import etcd_program

__all__ = ["EtcdServer"]


@dataclass(frozen=True, slots=True)
class EtcdServer:
    """An embedded etcd with its store below `data_dir`, on 127.0.0.1."""

    data_dir: Path
    client_port: int
    peer_port: int

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self.client_port}"

    async def ready(self) -> None:
        """Healthy means that it has a leader and serves reads."""
        status, body = await http_get(self.address, "/health")
        if status != 200 or json.loads(body).get("health") != "true":
            raise ProbeFailed(f"etcd at {self.address} says it is not healthy: {body.decode(errors='replace').strip()}")

    def spec(self) -> ChildSpec:
        """The child. Short heartbeats: a single node elects itself within half a second after a restart."""
        client, peer = f"http://{self.address}", f"http://127.0.0.1:{self.peer_port}"
        options = {
            "name": "flint",
            "data-dir": str(self.data_dir),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"flint={peer}",
            "heartbeat-interval": "100",
            "election-timeout": "500",
            "snapshot-count": "5000",
            "auto-compaction-mode": "revision",
            "auto-compaction-retention": "1000",
            "log-level": "warn",
            "logger": "zap",
        }
        return ChildSpec(
            name="etcd",
            argv=(str(etcd_program()), *(f"--{key}={value}" for key, value in options.items())),
            wave=WAVE_SERVERS,
            address=self.address,
            ready=self.ready,
            ready_deadline_s=20.0,
            stop_deadline_s=5.0,
        )
