"""Frames on the pipes between a pool and its evaluators: a length, then that many bytes.

Pool to evaluator: a head frame (JSON: `[operation, source, variables]`), then a body frame (the JSON text that the
program reads; empty for `check`). Evaluator to pool: one frame, its first byte says what it is: `R` ready, `V` JSON
text of the array of results, `S` syntax, `E` runtime error, `M` memory, `O` output; the rest is text in UTF-8.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["CHECK", "EVALUATE", "HEADER", "LARGEST", "frame"]

EVALUATE: Final = "evaluate"
CHECK: Final = "check"
HEADER: Final = struct.Struct(">I")
LARGEST: Final = 256 * 2**20
"""No frame is longer; a length beyond it means that the stream is broken."""


def frame(payload: bytes) -> bytes:
    """The payload with its length in front."""
    return HEADER.pack(len(payload)) + payload
