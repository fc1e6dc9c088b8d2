"""Restate: its server and its Node SDK, from npm."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.error
import urllib.request

from rivals.harness import DRIVERS, Missing, Rival, free_port, node, node_packages

__all__ = ["RestateService", "RestateWorkflow"]

_PACKAGES = ("@restatedev/restate-server@1.7.12", "@restatedev/restate-sdk@1.17.2")
_DRIVER = DRIVERS / "restate.mjs"
_READY_S = 60


class RestateWorkflow(Rival):
    """Workflow mode: one invocation of `run` per key, its steps by `ctx.run`."""

    name = "Restate, workflows"
    settings = "one node, 24 partitions, RocksDB with fsynced WAL (its defaults); service and client each a Node"
    kind = "workflow"

    async def install(self) -> None:
        self._node = await node()
        self._home = await node_packages("restate", _PACKAGES)
        shutil.copy(_DRIVER, self._home / _DRIVER.name)

    async def start(self) -> None:
        binary = next(self._home.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"), None)
        if binary is None:
            raise Missing("npm has no restate-server for this machine")
        ingress, admin, fabric, service = (free_port() for _ in range(4))
        await self.spawn(
            "server",
            [binary, "--no-logo", "--base-dir", self.folder / "data", "--node-name", "bench"],
            {
                "RESTATE_LISTEN_MODE": "tcp",
                "RESTATE_BIND_ADDRESS": f"127.0.0.1:{fabric}",
                "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{fabric}",
                "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
                "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
                "RESTATE_DISABLE_TELEMETRY": "true",
            },
        )
        script = self._home / _DRIVER.name
        await self.spawn("service", [self._node, script, "service", str(service)], {"NODE_ENV": "production"})
        await self._register(f"http://127.0.0.1:{admin}/deployments", f"http://127.0.0.1:{service}")
        await self.drive([self._node, script, "client", f"http://127.0.0.1:{ingress}", self.kind])

    async def _register(self, url: str, service: str) -> None:
        body = json.dumps({"uri": service}).encode()
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        why = ""
        for _ in range(_READY_S * 4):
            try:
                await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=5).read())
            except urllib.error.HTTPError as error:
                why = error.read().decode(errors="replace")
            except OSError as error:
                why = str(error)
            else:
                return
            await asyncio.sleep(0.25)
        raise Missing(f"Restate takes no deployment: {why}; {self.log('server')}")


class RestateService(RestateWorkflow):
    """Plain service mode: a durable invocation without a key."""

    name = "Restate, services"
    kind = "service"
