"""What branch runs begin with: their input, with the contents of what it refers to.

The chunks of one fork refer to the same few values (what the branches begin from, segments of the collection), so the
latest of them are kept here, within a bound.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, Final

import orjson

from flint_bus.payloads import PayloadClient
from flint_core.payloads import Reference, reference_of

__all__ = ["BranchInputs"]

_KEPT_BYTES: Final = 8 * 2**20
_LARGEST_BYTES: Final = 2**20
"""Larger ones are not kept."""


class BranchInputs:
    """Reads them, for all runs on this worker."""

    def __init__(self, client: PayloadClient) -> None:
        self._client = client
        self._kept: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()
        self._kept_bytes = 0

    async def read(self, namespace: str, data: bytes) -> dict[str, Any]:
        """The document for `Machine.start_branch`. Raises PayloadMissing, PayloadsUnavailable, ValueError."""
        document: dict[str, Any] = orjson.loads(data)
        document["entry"] = await self._content(namespace, document["entry"])
        if "skip" in document:
            skip = document.pop("skip")
            items = await self._content(namespace, document["items"])
            document["items"] = items[skip : skip + document["count"]]
        return document

    async def _content(self, namespace: str, value: Any) -> Any:
        reference = reference_of(value)
        if reference is None:
            return value
        name = namespace, reference.sha256
        kept = self._kept.get(name)
        if kept is not None:
            self._kept.move_to_end(name)
            return kept[0]
        data = await self._client.get(namespace, reference)
        content = await asyncio.to_thread(orjson.loads, data)
        self._keep(name, content, reference)
        return content

    def _keep(self, name: tuple[str, str], content: Any, reference: Reference) -> None:
        if reference.size > _LARGEST_BYTES or name in self._kept:
            return
        self._kept[name] = content, reference.size
        self._kept_bytes += reference.size
        while self._kept_bytes > _KEPT_BYTES:
            _, (_, size) = self._kept.popitem(last=False)
            self._kept_bytes -= size
