"""The ended runs that this gateway has heard of lately, bounded by bytes.

An ended run never changes but by a reset, of which its owner tells every gateway before it happens (`outdate`); a
gateway that may have missed it forgets everything (`clear`). Entries leave in the order in which they came. Keys are
full resource names, namespace included, so an answer can never cross namespaces.
"""

from __future__ import annotations

from collections import OrderedDict

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_ops import metrics

__all__ = ["TERMINAL", "ResultCache"]

TERMINAL = frozenset(
    {runs_pb2.Run.STATE_SUCCEEDED, runs_pb2.Run.STATE_FAILED, runs_pb2.Run.STATE_CANCELLED},
)
"""States that a run never leaves but by a reset."""

_OVERHEAD = 512
_EXPANSION = 2  # a parsed message takes more memory than its encoding
_MAX_OUTDATED = 10_000

_BYTES = metrics.gauge("gateway_result_cache_bytes", "Estimated memory of the result cache")


class ResultCache:
    """See the module."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        # Not a dict: the oldest of one that entries leave at its front is found by walking over all that left.
        self._runs: OrderedDict[str, tuple[int, runs_pb2.Run]] = OrderedDict()
        self._bytes = 0
        _BYTES.set_function(lambda: self._bytes)
        # By name: the change below which nothing is kept any more.
        self._outdated: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, name: str) -> runs_pb2.Run | None:
        """The ended run of this full name, without input; do not change it."""
        entry = self._runs.get(name)
        return entry[1] if entry is not None else None

    def put(self, run: runs_pb2.Run) -> None:
        """Keeps an ended run. It shares memory with the message it came in: pass a copy of one that is large
        otherwise.
        """
        if run.name in self._runs or run.change < self._outdated.get(run.name, 0):
            return
        cost = run.ByteSize() * _EXPANSION + _OVERHEAD
        if cost > self._limit:
            return
        while self._bytes + cost > self._limit:
            _, (freed, _) = self._runs.popitem(last=False)
            self._bytes -= freed
        self._runs[run.name] = (cost, run)
        self._bytes += cost

    def outdate(self, name: str, below: int) -> None:
        """The run is taken back: what was or will be said of its changes below this number is not kept."""
        kept = self._runs.get(name)
        if kept is not None and kept[1].change < below:
            self._bytes -= kept[0]
            del self._runs[name]
        self._outdated.pop(name, None)  # it becomes the youngest
        if len(self._outdated) >= _MAX_OUTDATED:
            # Of the oldest nothing is on its way any more.
            self._outdated.popitem(last=False)
        self._outdated[name] = below

    def clear(self) -> None:
        """Forgets all ends."""
        self._runs.clear()
        self._bytes = 0
