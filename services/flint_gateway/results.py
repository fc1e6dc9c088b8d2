"""The ended runs that this gateway has heard of lately, bounded by bytes.

An ended run never changes, so an entry is right for ever. Entries leave in the order in which they came. Keys are full
resource names, namespace included, so an answer can never cross namespaces.
"""

from __future__ import annotations

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_ops import metrics

__all__ = ["TERMINAL", "ResultCache"]

TERMINAL = frozenset(
    {runs_pb2.Run.STATE_SUCCEEDED, runs_pb2.Run.STATE_FAILED, runs_pb2.Run.STATE_CANCELLED},
)
"""States that a run never leaves."""

_OVERHEAD = 512
_EXPANSION = 2  # a parsed message takes more memory than its encoding

_BYTES = metrics.gauge("gateway_result_cache_bytes", "Estimated memory of the result cache")


class ResultCache:
    """See the module."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._runs: dict[str, tuple[int, runs_pb2.Run]] = {}
        self._bytes = 0

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
        if run.name in self._runs:
            return
        cost = run.ByteSize() * _EXPANSION + _OVERHEAD
        if cost > self._limit:
            return
        while self._bytes + cost > self._limit:
            oldest = next(iter(self._runs))
            self._bytes -= self._runs.pop(oldest)[0]
        self._runs[run.name] = (cost, run)
        self._bytes += cost
        _BYTES.set(self._bytes)
