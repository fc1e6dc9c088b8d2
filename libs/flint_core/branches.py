"""Wide forks: how branches are divided into chunks, what each chunk's run is given, and how the results are joined.

A fork with more branches than `Spread.above` leaves its leg: its branches are divided into chunks, each a run of its
own (a branch run) of the same version, which begins at the fork (`Machine.start_branch`) and executes a range of the
branches. The machine asks for them with one `Await` of kind BRANCHES; whoever serves that starts the chunks, at most
`window` at a time, and answers once with what `join` gives. Pure: scheduler, worker and test kit share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from flint_core.payloads import Payload, Reference
from flint_core.problems import Problem, ProblemType

__all__ = [
    "END",
    "FAILED",
    "NO_SPREAD",
    "OUTPUTS",
    "SUCCEEDED",
    "WON",
    "BranchesRequest",
    "Chunk",
    "Outcome",
    "Spread",
    "branch_input",
    "chunk_size",
    "concatenated",
    "divide",
    "join",
    "layout",
    "payload_of",
    "request_of",
]

OUTPUTS: Final = "outputs"
"""Member of a branch run's output: the outputs of its branches, in order, or a reference to them."""
WON: Final = "won"
"""Instead: the output of the branch that was first."""
END: Final = "end"
"""Instead: one of its branches ended the run (`then: end`) with this output."""
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
_MOST_CHUNKS: Final = 1_000
_INLINE_BYTES: Final = 65_536
"""What the outputs of all chunks may take together without references, about."""
_TOGETHER: Final = 16
"""Branches of a chunk that run at once, if that leaves enough chunks to run."""
_ITEMS_BYTES: Final = 16_384
"""A collection below this size stands in the request itself."""


class Spread(NamedTuple):
    """When a fork leaves its leg, and in which pieces. Counts are of branches, or iterations."""

    above: int = 0  # forks with more branches are wide; 0: none
    chunks: int = 64  # chunks that a fork is divided into, as far as the next two allow
    least: int = 10  # branches of one chunk
    most: int = 500
    window: int = 256  # chunks of one fork that run at the same time


NO_SPREAD: Final = Spread()
"""All forks stay in their leg."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of a fork's branches; `number` counts the chunks from 0."""

    number: int
    first: int
    count: int


class Outcome(NamedTuple):
    """How the run of one chunk ended. `order`: grows with the moment; `result`: its output, or its problem as JSON."""

    number: int
    state: str  # succeeded, failed, cancelled
    order: float
    result: Any


@dataclass(frozen=True, slots=True)
class BranchesRequest:
    """What an await of kind BRANCHES asks for.

    `entry`: what the branches begin from, or a reference to it. `segments`: of a loop, (items or a reference to them,
    how many); a chunk lies within one of them. `at_once`: branches of one chunk that may run at the same time.
    """

    count: int
    size: int
    window: int
    at_once: int
    compete: bool
    entry: Any
    segments: list[list[Any]] | None

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.count // self.size)

    def chunk(self, number: int) -> Chunk:
        """One of them."""
        first = number * self.size
        return Chunk(number, first, min(self.size, self.count - first))

    def to_json(self) -> dict[str, Any]:
        """As it stands in the await's request."""
        return {name: getattr(self, name) for name in self.__slots__}


def request_of(document: Mapping[str, Any]) -> BranchesRequest:
    """The reverse of `to_json`. Raises ValueError, TypeError, KeyError."""
    request = BranchesRequest(**{name: document[name] for name in BranchesRequest.__slots__})
    if not (request.size > 0 and request.window > 0 and request.count > 0):
        raise ValueError("the request divides nothing, or into nothing")
    return request


def chunk_size(count: int, spread: Spread, branch_bytes: int = 0, payload_bytes: int = 0) -> int:
    """Branches of one chunk. `branch_bytes`: average item; those of a chunk fit twice into a payload."""
    size = max(min(max(-(-count // max(spread.chunks, 1)), spread.least), spread.most), -(-count // _MOST_CHUNKS), 1)
    if branch_bytes:
        size = min(size, max(1, payload_bytes // 2 // branch_bytes))
    return size


def payload_of(data: bytes) -> Payload:
    """JSON that is to be stored, with its reference."""
    return Payload(Reference(hashlib.sha256(data).hexdigest(), len(data)), data)


def divide(items: list[Any], spread: Spread, payload_bytes: int) -> tuple[dict[str, Any], list[Payload]]:
    """A collection in segments that hold whole chunks: `{"count", "size", "segments"}`, and what is to be stored."""
    encoded = orjson.dumps(items)
    count = len(items)
    average = max(1, len(encoded) // max(count, 1))
    size = chunk_size(count, spread, average, payload_bytes)
    if len(encoded) <= _ITEMS_BYTES:
        return {"count": count, "size": size, "segments": [[items, count]]}, []
    length = size * max(1, payload_bytes // 2 // (size * average))
    segments: list[list[Any]] = []
    payloads: list[Payload] = []
    for at in range(0, count, length):
        part = items[at : at + length]
        payload = payload_of(orjson.dumps(part))
        payloads.append(payload)
        segments.append([payload.reference.to_json(), len(part)])
    return {"count": count, "size": size, "segments": segments}, payloads


def concatenated(parts: Iterable[bytes]) -> bytes:
    """One JSON array of the members of several, none of which is parsed: they were written by this program."""
    stripped = (part.strip() for part in parts)
    inner = [memoryview(part)[1:-1] for part in stripped if part[1:-1].strip()]
    return b"".join((b"[", b",".join(inner), b"]"))


def layout(count: int, size: int, most: int, spread: Spread) -> tuple[int, int]:
    """(chunks at a time, branches at a time in each), so that no more than `most` branches run at once.

    The more branches of a chunk run at once, the more of what they do is recorded together. So beyond
    `spread.chunks`, which is enough to occupy the workers, the branches that may run are given to fewer chunks, until
    each has `_TOGETHER`.
    """
    chunks = -(-count // size)
    window = max(1, min(chunks, most, spread.window))
    together = min(_TOGETHER, most // max(spread.chunks, 1))
    at_once = max(1, min(size, max(most // window, together)))
    return max(1, min(window, most // at_once)), at_once


def branch_input(request: BranchesRequest, number: int) -> dict[str, Any]:
    """What the run of a chunk begins with: see `Machine.start_branch`."""
    chunk = request.chunk(number)
    document: dict[str, Any] = {
        "entry": request.entry,
        "first": chunk.first,
        "count": chunk.count,
        "at_once": request.at_once,
        "inline": max(256, _INLINE_BYTES // request.chunks),
    }
    if request.segments is not None:
        begin = 0
        for items, length in request.segments:
            if chunk.first < begin + length:
                document["items"], document["skip"] = items, chunk.first - begin
                break
            begin += length
    if isinstance(document.get("items"), list):
        skip = document.pop("skip")
        document["items"] = document["items"][skip : skip + chunk.count]
    return document


def join(request: BranchesRequest, outcomes: Iterable[Outcome]) -> dict[str, Any] | None:
    """The answer to the await, or None while the others are to be waited for.

    As in the leg: the first failure fails the fork; of a competing one the first success decides, and the last failure
    when all failed; a branch that ended the run does so whatever the others do.
    """
    ended = sorted(outcomes, key=lambda outcome: outcome.order)
    for outcome in ended:
        if outcome.state == SUCCEEDED:
            if END in outcome.result:
                return {"state": "ended", "output": outcome.result[END]}
            if request.compete:
                return {"state": "won", "output": outcome.result[WON]}
        elif not request.compete:
            return {"state": FAILED, "error": _problem(outcome)}
    if len(ended) < request.chunks:
        return None
    if request.compete:
        return {"state": FAILED, "error": _problem(ended[-1])}
    ended.sort(key=lambda outcome: outcome.number)
    return {"state": SUCCEEDED, "parts": [outcome.result[OUTPUTS] for outcome in ended]}


def _problem(outcome: Outcome) -> dict[str, Any]:
    if outcome.state == FAILED and isinstance(outcome.result, dict):
        return outcome.result
    return Problem(ProblemType.CANCELLED, 499, "Cancelled", "The branches were cancelled.").to_json()
