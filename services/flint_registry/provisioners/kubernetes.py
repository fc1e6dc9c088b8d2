"""Workers as pods of a Kubernetes cluster, through the official client.

Pods are made and deleted one by one, so that exactly the workers that were chosen end: a Deployment that is scaled down
chooses for itself, and its deletion costs are a hint. What runs is known from a list and a watch that goes on from it:

**listing** → **watching** from the list's version → the watch ends, or its version is too old (410) → **listing** …

Requests that are refused for a moment (429, 5xx, no connection) are tried again a few times, after the time that the
server asks for; then the autoscaler tries at its next look. That a pod exists already (409) is what was wanted: names
are never used twice. When the watch dies the leader's duties end, and the service with them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from kubernetes.aio import client, config

from flint_ops.config import KubernetesSettings
from flint_ops.logging import get_logger
from flint_registry.provisioners.base import Order, Provisioned, ProvisionerRefused, ProvisionerUnavailable
from flint_registry.provisioners.pods import SELECTOR, TemplateInvalid, provisioned, read_template, worker_pod

__all__ = ["KubernetesProvisioner"]

_PAGE: Final = 500
_AT_ONCE: Final = 16
_TRIES: Final = 4
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_RELIST_S: Final = 1.0
_WATCH_S: Final = 240
_WATCH_MARGIN_S: Final = 30.0
_LONGEST_LINE: Final = 8 * 2**20
_MOST_TEXT: Final = 300

_log = get_logger("flint_registry.kubernetes")


class _Expired(Exception):
    """The watch's version is not kept any more."""


class KubernetesProvisioner:
    """Used from one event loop."""

    name = "kubernetes"

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings
        self._client: client.ApiClient | None = None
        self._opening = asyncio.Lock()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._pods: dict[str, Provisioned] = {}
        self._listed = asyncio.Event()

    async def start(self, orders: Sequence[Order]) -> None:
        """See Provisioner."""
        templates: dict[str, dict[str, Any]] = {}
        for pool in {order.pool for order in orders}:
            path = Path(self._settings.templates.get(pool) or self._settings.template)
            try:
                templates[pool] = await asyncio.to_thread(read_template, path)
            except TemplateInvalid as error:
                raise ProvisionerRefused(f"the template of pool {pool} is wrong: {error}") from None
        await self._each(lambda order: self._create(templates[order.pool], order), orders)

    async def list(self) -> list[Provisioned]:
        """See Provisioner. From what the watch told; one that was made a moment ago is there."""
        if not self._listed.is_set():
            await self._list()
        return list(self._pods.values())

    async def end(self, worker_ids: Iterable[str]) -> None:
        """See Provisioner: a pod's containers get SIGTERM and the grace of its template."""
        await self._each(self._delete, list(worker_ids))

    async def watch(self) -> AsyncGenerator[Provisioned, None]:
        """See Provisioner. Keeps what `list` answers, too."""
        while True:
            try:
                version = await self._list()
                for pod in list(self._pods.values()):
                    if pod.ended:
                        yield pod
                async for pod in self._follow(version):
                    if pod.ended:
                        yield pod
            except _Expired:
                _log.info("watch_begins_anew")
            except (ProvisionerUnavailable, ProvisionerRefused) as error:
                _log.warning("pods_not_watched", error=str(error))
            self._listed.clear()
            await asyncio.sleep(_RELIST_S * (0.5 + random.random()))

    async def close(self) -> None:
        """See Provisioner."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _create(self, template: dict[str, Any], order: Order) -> None:
        body = worker_pod(template, order, self._settings.namespace)
        made = await self._ask("POST", "", body=body, fine=(409,))
        pod = provisioned(made) if made is not None else None
        if pod is not None:
            self._pods.setdefault(pod.worker_id, pod)

    async def _delete(self, worker_id: str) -> None:
        pod = self._pods.get(worker_id)
        if await self._ask("DELETE", f"/{worker_id}", fine=(404, 409)) is None or (pod is not None and pod.ended):
            self._pods.pop(worker_id, None)

    async def _list(self) -> str:
        """Reads all pods, page by page; the version from which a watch goes on."""
        found: dict[str, Provisioned] = {}
        query = {"labelSelector": SELECTOR, "limit": str(_PAGE)}
        while True:
            answer = await self._ask("GET", "", query=query) or {}
            for item in answer.get("items") or ():
                pod = provisioned(item)
                if pod is not None:
                    found[pod.worker_id] = pod
            metadata = answer.get("metadata") or {}
            if not metadata.get("continue"):
                self._pods = found
                self._listed.set()
                return str(metadata.get("resourceVersion") or "")
            query["continue"] = metadata["continue"]

    async def _follow(self, version: str) -> AsyncGenerator[Provisioned, None]:
        """Changes after a version, until the server ends the watch. Raises _Expired, ProvisionerUnavailable."""
        query = {
            "labelSelector": SELECTOR,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_S),
        }
        timeout = aiohttp.ClientTimeout(connect=self._settings.request_timeout_s, sock_read=_WATCH_S + _WATCH_MARGIN_S)
        try:
            response = await self._request("GET", "", query, None, timeout)
            async with response:
                if response.status == 410:
                    raise _Expired
                if response.status != 200:
                    raise ProvisionerUnavailable(f"the API server answers {response.status} to a watch")
                held = b""
                async for part in response.content.iter_any():
                    *lines, held = (held + part).split(b"\n")
                    if len(held) > _LONGEST_LINE:
                        raise ProvisionerUnavailable("an event of the watch is too long")
                    for line in lines:
                        pod = self._take(line)
                        if pod is not None:
                            yield pod
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProvisionerUnavailable(f"the watch broke: {error!r}") from error

    def _take(self, line: bytes) -> Provisioned | None:
        if not line.strip():
            return None
        try:
            event = orjson.loads(line)
            kind, item = event["type"], event["object"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise ProvisionerUnavailable("an event of the watch is unreadable") from None
        if kind == "ERROR":
            if item.get("code") == 410:
                raise _Expired
            raise ProvisionerUnavailable(f"the watch says: {str(item.get('message'))[:_MOST_TEXT]}")
        pod = provisioned(item)
        if pod is None:
            return None
        if kind == "DELETED":
            self._pods.pop(pod.worker_id, None)
        else:
            self._pods[pod.worker_id] = pod
        return pod

    async def _each(self, work: Callable[[Any], Awaitable[None]], items: Iterable[Any]) -> None:
        """All of them, some at a time; the first failure is raised once the others have ended."""

        async def one(item: Any) -> None:
            async with self._gate:
                await work(item)

        for result in await asyncio.gather(*map(one, items), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        fine: tuple[int, ...] = (),
    ) -> dict[str, Any] | None:
        """One request, tried again where that helps: the answer, None for a status that is `fine`."""
        pause_s = _FIRST_PAUSE_S
        timeout = aiohttp.ClientTimeout(total=self._settings.request_timeout_s)
        for left in reversed(range(_TRIES)):
            try:
                response = await self._request(method, path, query or {}, body, timeout)
                async with response:
                    data = await response.read()
                    if 200 <= response.status < 300:
                        answer: dict[str, Any] = orjson.loads(data)
                        return answer
                    if response.status in fine:
                        return None
                    problem = f"the API server answers {response.status} to {method}: {_message(data)}"
                    if response.status not in (408, 429) and response.status < 500:
                        raise ProvisionerRefused(problem)
                    pause_s = max(pause_s, _asked_s(response.headers.get("Retry-After")))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = f"the API server is not reachable: {error!r}"
            except orjson.JSONDecodeError:
                problem = f"the API server's answer to {method} is no JSON"
            if not left or pause_s > _LONGEST_PAUSE_S:
                break
            await asyncio.sleep(pause_s * (1 + random.random() / 2))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise ProvisionerUnavailable(problem, retry_after_s=pause_s)

    async def _request(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any] | None, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        api = await self._api()
        url = f"/api/v1/namespaces/{self._settings.namespace}/pods{path}"
        response: aiohttp.ClientResponse = await api.call_api(
            url,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=timeout,
        )
        return response

    async def _api(self) -> client.ApiClient:
        async with self._opening:
            if self._client is None:
                where = client.Configuration()
                where.connection_pool_maxsize = _AT_ONCE + 2
                try:
                    if self._settings.kubeconfig:
                        await config.load_kube_config(
                            self._settings.kubeconfig,
                            context=self._settings.context or None,
                            client_configuration=where,
                            persist_config=False,
                        )
                    else:
                        config.load_incluster_config(client_configuration=where)
                except (config.ConfigException, OSError) as error:
                    raise ProvisionerRefused(f"there is no access to a Kubernetes cluster: {error}") from None
                self._client = client.ApiClient(where)
            return self._client


def _message(data: bytes) -> str:
    try:
        return str(orjson.loads(data).get("message", ""))[:_MOST_TEXT]
    except (orjson.JSONDecodeError, AttributeError):
        return data[:_MOST_TEXT].decode(errors="replace")


def _asked_s(text: str | None) -> float:
    """Retry-After in seconds; a date, or nonsense, is no wish."""
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
