"""OpenAPI documents: fetched, remembered as long as their server allows, read, and looked into by reference.

A document is fetched once for all calls that wait for it. When it has grown old its server is asked whether it changed
(ETag, Last-Modified); when the server is not there, the old one serves for a day more. References leave no document:
nothing is fetched because a document says so.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import httpx
import orjson
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flint_core.problems import ProblemType
from flint_worker.authentication.policies import read_policy
from flint_worker.executors.client import Answer, public_uri
from flint_worker.executors.faults import Fault
from flint_worker.executors.outbound import Outbound

__all__ = ["Document", "Documents", "unusable"]

_UNTOLD_S: Final = 60.0
"""How long a document is good whose server says nothing."""
_LONGEST_S: Final = 3600.0
_STALE_S: Final = 86_400.0
_FETCH_S: Final = 60.0
_YAML_BYTES: Final = 2 * 2**20
"""YAML takes seconds for a megabyte; JSON does not."""
_NODES: Final = 1_000_000
_DEPTH: Final = 100
_REFERENCES: Final = 50
_MAX_AGE: Final = re.compile(r"max-age\s*=\s*\"?(\d{1,9})")


class Document:
    """A document that was read. `operations`: what was made of it, by whoever made it."""

    def __init__(self, root: dict[str, Any], url: httpx.URL) -> None:
        self.root = root
        self.url = url
        self.operations: OrderedDict[str, Any] = OrderedDict()

    def resolve(self, node: Any) -> Any:
        """The node, or what it refers to within the document. Raises Fault (configuration)."""
        for _ in range(_REFERENCES):
            if not isinstance(node, dict) or not isinstance(node.get("$ref"), str):
                return node
            node = self.at(node["$ref"])
        raise unusable("its references run in a circle")

    def at(self, reference: str) -> Any:
        """What a reference `#/…` names. Raises Fault (configuration)."""
        if reference != "#" and not reference.startswith("#/"):
            raise unusable(f"the reference {reference[:200]!r} leaves the document")
        node: Any = self.root
        for part in reference[2:].split("/") if len(reference) > 2 else ():
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and name.isdigit() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, dict) and name in node:
                node = node[name]
            else:
                raise unusable(f"the reference {reference[:200]!r} leads nowhere")
        return node


class _Entry:
    __slots__ = ("document", "etag", "fetched_at", "good_until", "lock", "modified", "size")

    def __init__(self) -> None:
        self.document: Document | None = None
        self.etag = self.modified = ""
        self.fetched_at = self.good_until = 0.0  # monotonic, seconds
        self.size = 0
        self.lock = asyncio.Lock()


class Documents:
    """Belongs to one event loop. Remembers documents by address and policy, `cache_bytes` in all."""

    def __init__(self, outbound: Outbound, document_bytes: int, cache_bytes: int) -> None:
        self._outbound = outbound
        self._document_bytes = document_bytes
        self._cache_bytes = cache_bytes
        self._entries: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()

    async def get(self, url: httpx.URL, policy: Mapping[str, Any] | None, deadline_s: float | None) -> Document:
        """The document. Raises Fault."""
        key = (str(url), read_policy(policy).key if policy else b"")
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        if entry.document is None or time.monotonic() >= entry.good_until:
            async with entry.lock:
                if entry.document is None or time.monotonic() >= entry.good_until:
                    try:
                        await self._renew(entry, url, policy, deadline_s)
                    finally:
                        self._forget(key)
        if entry.document is None:
            raise unusable("it could not be read")
        return entry.document

    async def _renew(
        self, entry: _Entry, url: httpx.URL, policy: Mapping[str, Any] | None, deadline_s: float | None
    ) -> None:
        headers = {"accept": "application/json, application/yaml;q=0.9, */*;q=0.5"}
        if entry.document is not None:
            if entry.etag:
                headers["if-none-match"] = entry.etag
            if entry.modified:
                headers["if-modified-since"] = entry.modified
        now = time.monotonic()
        try:
            answer = await self._outbound.client.exchange(
                "GET",
                url,
                headers=headers,
                auth=self._outbound.auth(policy),
                redirect=True,
                deadline_s=_FETCH_S if deadline_s is None else min(deadline_s, _FETCH_S),
                limit_bytes=self._document_bytes,
            )
            if answer.status not in (200, 304):
                detail = f"GET {public_uri(url)} answered {answer.status}"
                raise Fault(ProblemType.COMMUNICATION, answer.status, "The document cannot be fetched", detail)
        except Fault as fault:
            if entry.document is None or fault.status in (401, 403, 404, 410) or now - entry.fetched_at > _STALE_S:
                entry.document = None
                raise
            entry.good_until = now + _UNTOLD_S
            return
        if answer.status == 200:
            entry.document = Document(await asyncio.to_thread(_read, answer), answer.url)
            entry.size = len(answer.body)
        elif entry.document is None:
            raise Fault(ProblemType.COMMUNICATION, 502, "The document cannot be fetched", "304 without a question")
        entry.etag = answer.headers.get("etag", entry.etag)
        entry.modified = answer.headers.get("last-modified", entry.modified)
        entry.fetched_at = now
        entry.good_until = now + _good_s(answer.headers)

    def _forget(self, latest: tuple[str, bytes]) -> None:
        """Drops the longest unused ones beyond the bound; never the latest, nor one that is being fetched."""
        size = sum(entry.size for entry in self._entries.values())
        for key, entry in list(self._entries.items()):
            if size <= self._cache_bytes and entry.document is not None:
                continue
            if key != latest and not entry.lock.locked():
                size -= entry.size
                del self._entries[key]


def unusable(detail: str) -> Fault:
    """The document is not one that can be worked with."""
    return Fault(ProblemType.CONFIGURATION, 400, "The OpenAPI document cannot be used", detail)


def _good_s(headers: httpx.Headers) -> float:
    control = headers.get("cache-control", "").lower()
    if "no-store" in control or "no-cache" in control:
        return 0.0
    told = _MAX_AGE.search(control)
    return _UNTOLD_S if told is None else min(float(told.group(1)), _LONGEST_S)


def _read(answer: Answer) -> dict[str, Any]:
    """The document's root, from JSON or YAML. Runs in a thread."""
    try:
        root = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        if len(answer.body) > _YAML_BYTES:
            raise unusable(f"it is not JSON, and for YAML it is too large (more than {_YAML_BYTES} bytes)") from None
        try:
            root = YAML(typ="safe", pure=True).load(answer.body.decode("utf-8-sig"))
        except (YAMLError, UnicodeDecodeError, ValueError, RecursionError):
            raise unusable("it is neither JSON nor YAML") from None
    plain = _plain(root)
    if not isinstance(plain, dict):
        raise unusable("it is not an object")
    return plain


def _plain(root: Any) -> Any:
    """The value with texts as keys and JSON's types only; YAML's aliases are written out, within bounds."""
    count = 0

    def copy(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > _NODES or depth > _DEPTH:
            raise unusable(f"it has more than {_NODES} values or {_DEPTH} levels")
        if isinstance(value, dict):
            return {str(name): copy(member, depth + 1) for name, member in value.items()}
        if isinstance(value, list):
            return [copy(item, depth + 1) for item in value]
        return value if isinstance(value, str | int | float | bool | None) else str(value)

    return copy(root, 0)
