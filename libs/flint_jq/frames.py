"""Frames on the pipes between a pool and its evaluators: a length, then that many bytes.

Pool to evaluator: a head frame (JSON: `[seconds, operation, source, variables]`, the first being the processor time
that it may take), then a body frame (the JSON text that the program reads; empty for `check`). Evaluator to pool: one
frame, its first byte says what it is: `R` ready, `V` JSON text of the array of results, `S` syntax, `E` runtime error,
`M` memory, `O` output; the rest is text in UTF-8.

An evaluator for large values also takes `[seconds, large, source, variables, options]` and answers with `L` and a value
taken apart (`pack`): no other process has to read it. Options: `limit`, the bytes of JSON that may stay together;
`redact`, texts to be replaced; `schema`, a JSON Schema (then the answer is `V` and what does not match, or null);
`outline`, the bytes that an outline may have (then it is `V` and that: `flint_core.outlines`).
Without a source the body is the value itself.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["CHECK", "EVALUATE", "HEADER", "LARGE", "LARGEST", "frame", "pack", "unpack"]

EVALUATE: Final = "evaluate"
CHECK: Final = "check"
LARGE: Final = "large"
HEADER: Final = struct.Struct(">I")
LARGEST: Final = 256 * 2**20
"""No frame is longer; a length beyond it means that the stream is broken."""


def frame(payload: bytes) -> bytes:
    """The payload with its length in front."""
    return HEADER.pack(len(payload)) + payload


def pack(small: bytes, pieces: list[bytes]) -> bytes:
    """A small JSON text and the larger ones that left it."""
    return b"".join([HEADER.pack(len(pieces)), *map(frame, (small, *pieces))])


def unpack(packed: bytes) -> tuple[bytes, list[bytes]]:
    """The reverse of `pack`."""
    (count,) = HEADER.unpack_from(packed)
    at = HEADER.size
    parts: list[bytes] = []
    for _ in range(count + 1):
        (size,) = HEADER.unpack_from(packed, at)
        at += HEADER.size
        parts.append(packed[at : at + size])
        at += size
    return parts[0], parts[1:]
