"""Unpacking answers (Content-Encoding) piece by piece: what would become gigabytes is never unpacked whole."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Final

from flint_core.problems import ProblemType
from flint_worker.executors.faults import Fault

__all__ = ["Unpacker"]

_PIECE: Final = 65_536
_GZIP: Final = 16 + zlib.MAX_WBITS


class Unpacker:
    """For one answer. Knows `gzip` and `deflate`, which is what Flint offers to servers, one at a time."""

    def __init__(self, encodings: str) -> None:
        names = [name for text in encodings.lower().split(",") if (name := text.strip()) not in ("", "identity")]
        if len(names) > 1 or not set(names) <= {"gzip", "x-gzip", "deflate"}:
            detail = "only gzip or deflate, once, can be read"
            raise Fault(ProblemType.COMMUNICATION, 502, "The HTTP answer is packed in a way nobody asked for", detail)
        self._name = names[0] if names else ""
        self._inflater: Any = None
        self._begun = False

    @property
    def plain(self) -> bool:
        """Whether there is nothing to unpack."""
        return not self._name

    def feed(self, packed: bytes) -> Iterator[bytes]:
        """What came, unpacked, in pieces of at most 64 KiB. Raises Fault when it is not what it claims to be."""
        if self.plain or not packed:
            yield packed
            return
        while True:
            if self._inflater is None:
                if self._begun and not packed.startswith(b"\x1f\x8b"):
                    return  # padding behind the last member
                self._inflater = zlib.decompressobj(self._window(packed))
                self._begun = True
            try:
                piece = self._inflater.decompress(packed, _PIECE)
            except zlib.error:
                raise _broken() from None
            if piece:
                yield piece
            packed = self._inflater.unconsumed_tail
            if self._inflater.eof:
                # gzip may have several members, one after another.
                packed = self._inflater.unused_data if self._name != "deflate" else b""
                self._inflater = None
                if not packed:
                    return
            elif not packed and len(piece) < _PIECE:
                return

    def end(self) -> None:
        """No more comes. Raises Fault when something is missing."""
        if self._inflater is not None:
            raise _broken()

    def _window(self, packed: bytes) -> int:
        if self._name != "deflate":
            return _GZIP
        # Some servers send deflate without zlib's header, whose first byte says 8 in its low half.
        wrapped = packed[0] & 0x0F == 8 and (len(packed) < 2 or int.from_bytes(packed[:2], "big") % 31 == 0)
        return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS


def _broken() -> Fault:
    detail = "its bytes are not what Content-Encoding says"
    return Fault(ProblemType.COMMUNICATION, 502, "The HTTP answer cannot be unpacked", detail)
