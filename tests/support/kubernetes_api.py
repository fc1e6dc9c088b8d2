"""A small HTTP server that behaves as the API of Kubernetes for pods: list with pages, watch, create, delete.

It refuses what the real one refuses (names that exist, versions that are not kept); on demand what an overloaded one
does: 429 with Retry-After, 500, broken watches. A kubelet is played by `set_status`.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

__all__ = ["FakeKubernetes", "fake_kubernetes"]


class FakeKubernetes:
    """`requests` counts by method; `failures` are statuses with which the next requests of a method are answered."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.requests: Counter[str] = Counter()
        self.failures: dict[str, list[tuple[int, dict[str, str]]]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.version = 100
        self.oldest = 0
        self.page = 2
        self.token = "a-token"
        self.watching = 0
        self._watches: set[asyncio.Queue[dict[str, Any] | None]] = set()
        self.address = ""

    # -- what tests do ------------------------------------------------------------------------------------------------

    def fail(self, method: str, *statuses: int, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failures.setdefault(method, []).extend((status, named) for status in statuses)

    def set_status(self, name: str, state: dict[str, Any], phase: str = "Running") -> None:
        """As a kubelet tells the state of the container `worker`."""
        pod = self.pods[name]
        pod["status"] = {"phase": phase, "containerStatuses": [{"name": "worker", "state": state}]}
        self._tell("MODIFIED", pod)

    def finish(self, name: str, code: int) -> None:
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.set_status(
            name, {"terminated": {"exitCode": code, "finishedAt": moment}}, "Failed" if code else "Succeeded"
        )

    def vanish(self, name: str) -> None:
        """Deleted by force: nobody knows whether its process runs."""
        self._tell("DELETED", self.pods.pop(name))

    def break_watches(self, *, forget: bool = False) -> None:
        if forget:
            self.version += 10
            self.oldest = self.version
        for queue in self._watches:
            queue.put_nowait(None)

    def kubeconfig(self, folder: Path) -> Path:
        path = folder / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "clusters": [{"name": "test", "cluster": {"server": self.address}}],
                    "users": [{"name": "test", "user": {"token": self.token}}],
                }
            )
        )
        return path

    # -- what it answers ----------------------------------------------------------------------------------------------

    def _tell(self, kind: str, pod: dict[str, Any]) -> None:
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        for queue in self._watches:
            queue.put_nowait({"type": kind, "object": json.loads(json.dumps(pod))})

    def _refusal(self, request: web.Request) -> web.Response | None:
        self.requests[request.method] += 1
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        waiting = self.failures.get(request.method)
        if waiting:
            status, headers = waiting.pop(0)
            return _status(status, "as the test wants it", headers)
        return None

    async def get(self, request: web.Request) -> web.StreamResponse:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        wanted = request.query.get("labelSelector", "")
        key, _, value = wanted.partition("=")
        if request.query.get("watch") == "true":
            return await self._watch(request)
        names = [name for name, pod in sorted(self.pods.items()) if pod["metadata"].get("labels", {}).get(key) == value]
        size = min(int(request.query.get("limit", "500")), self.page)
        start = int(request.query.get("continue", "0"))
        metadata: dict[str, Any] = {"resourceVersion": str(self.version)}
        if start + size < len(names):
            metadata["continue"] = str(start + size)
        items = [self.pods[name] for name in names[start : start + size]]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if int(request.query["resourceVersion"]) < self.oldest:
            return _status(410, "too old resource version")
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._watches.add(queue)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self.watching += 1
        try:
            bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
            await response.write(json.dumps(bookmark).encode() + b"\n")
            while (event := await queue.get()) is not None:
                data = json.dumps(event).encode() + b"\n"
                await response.write(data[:10])  # events are cut anywhere on their way
                await response.write(data[10:])
        finally:
            self.watching -= 1
            self._watches.discard(queue)
        return response

    async def post(self, request: web.Request) -> web.Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        pod = await request.json()
        name = pod["metadata"]["name"]
        if name in self.pods:
            return _status(409, f'pods "{name}" already exists')
        self.bodies.append(json.loads(json.dumps(pod)))
        pod["metadata"]["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        pod["status"] = {"phase": "Pending"}
        self.pods[name] = pod
        self._tell("ADDED", pod)
        return web.json_response(pod, status=201)

    async def delete(self, request: web.Request) -> web.Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        name = request.match_info["name"]
        pod = self.pods.get(name)
        if pod is None:
            return _status(404, f'pods "{name}" not found')
        ended = pod["status"]["phase"] in ("Succeeded", "Failed")
        pod["metadata"]["deletionTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if ended:
            self._tell("DELETED", self.pods.pop(name))
        else:
            self._tell("MODIFIED", pod)
        return web.json_response(pod)


def _status(code: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return web.json_response(document, status=code, headers=headers)


@asynccontextmanager
async def fake_kubernetes() -> AsyncIterator[FakeKubernetes]:
    """Serves namespace `flint` on a free port."""
    fake = FakeKubernetes()
    app = web.Application()
    path = "/api/v1/namespaces/flint/pods"
    app.router.add_get(path, fake.get)
    app.router.add_post(path, fake.post)
    app.router.add_delete(path + "/{name}", fake.delete)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        fake.break_watches()
        await runner.cleanup()
