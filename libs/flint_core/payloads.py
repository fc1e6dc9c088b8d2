"""Large values by reference: what stands for them in a run's state, and how a value is taken apart.

A value beyond `limits.payload_bytes` leaves the state: its JSON goes to the payload store under the SHA-256 of its
bytes, and `{"$payload": {"sha256": …, "bytes": …}}` takes its place. References are plain JSON, so they pass through
events, snapshots and messages unseen; whoever needs the value itself asks the store. A reference means something only
within its namespace, and only names what somebody there has stored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import orjson

__all__ = [
    "MEMBER",
    "MOST_PARTS",
    "Payload",
    "Reference",
    "fill",
    "holds_reference",
    "is_reference",
    "reference_of",
    "references_in",
    "references_in_json",
    "spill",
    "splice",
]

MEMBER: Final = "$payload"
MOST_PARTS: Final = 10_000
"""References that one stored value may hold."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MEMBER_BYTES: Final = 16_384
"""A member below this size stays where it is as long as the others make enough room."""


_WINDOW: Final = 2**20
"""JSON is searched in windows of this size, so that a thread that searches lets others run in between."""
_LONGEST: Final = 1_024
"""No reference is written with more bytes than this."""


def _spelled(text: str) -> str:
    """What matches the characters of a JSON string, plain or as \\u escapes."""
    return "".join(rf"(?:{re.escape(char)}|\\u(?i:{ord(char):04x}))" for char in text)


# A quotation mark within a JSON string has a backslash before it, so this matches objects only.
_WRITTEN: Final = re.compile(
    rf'\{{[ \t\r\n]{{0,64}}"{_spelled(MEMBER)}"[ \t\r\n]{{0,64}}:[ \t\r\n]{{0,64}}'
    rf"\{{[^{{}}]{{1,640}}\}}[ \t\r\n]{{0,64}}\}}".encode()
)


class Reference(NamedTuple):
    """Names one stored value: the SHA-256 of its JSON in hexadecimal, and the size of that in bytes."""

    sha256: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """The value that stands for it."""
        return {MEMBER: {"sha256": self.sha256, "bytes": self.size}}


class Payload(NamedTuple):
    """A value to be stored before its reference is recorded."""

    reference: Reference
    data: bytes  # JSON


def is_reference(value: Any) -> bool:
    """Whether the value stands for a stored one."""
    return type(value) is dict and len(value) == 1 and MEMBER in value and reference_of(value) is not None


def reference_of(value: Any) -> Reference | None:
    """The reference that the value is, or None."""
    if type(value) is not dict or len(value) != 1:
        return None
    content = value.get(MEMBER)
    if type(content) is not dict or len(content) != 2:
        return None
    sha256, size = content.get("sha256"), content.get("bytes")
    if type(sha256) is not str or type(size) is not int or size < 0 or not _SHA256.fullmatch(sha256):
        return None
    return Reference(sha256, size)


def references_in(value: Any) -> list[Reference]:
    """All references within the value, each once, in order. Does not recurse."""
    found: dict[Reference, None] = {}
    stack = [value]
    while stack:
        node = stack.pop()
        if type(node) is dict:
            reference = reference_of(node) if MEMBER in node else None
            if reference is not None:
                found[reference] = None
            else:
                stack.extend(reversed(node.values()))
        elif type(node) is list:
            stack.extend(reversed(node))
    return list(found)


def _written_in(data: bytes) -> Iterator[tuple[int, int, Reference]]:
    """(start, end, reference) of each reference in a JSON text, in order, without parsing that."""
    if MEMBER.encode() not in data and b"\\u00" not in data:
        return
    done = 0
    for window in range(0, len(data), _WINDOW):
        for match in _WRITTEN.finditer(data, max(done, window), min(len(data), window + _WINDOW + _LONGEST)):
            done = match.end()
            try:
                reference = reference_of(orjson.loads(match[0]))
            except orjson.JSONDecodeError:
                continue  # the text is not JSON: whoever reads it says so
            if reference is not None:
                yield match.start(), match.end(), reference


def references_in_json(data: bytes) -> dict[Reference, int]:
    """How often each reference stands in a JSON text. Costs nearly nothing where there is none."""
    found: dict[Reference, int] = {}
    for _, _, reference in _written_in(data):
        found[reference] = found.get(reference, 0) + 1
    return found


def splice(data: bytes, contents: Mapping[Reference, bytes]) -> bytes:
    """The JSON text with the texts of contents in place of those references that are named there."""
    pieces: list[bytes] = []
    at = 0
    for start, end, reference in _written_in(data):
        content = contents.get(reference)
        if content is not None:
            pieces += (data[at:start], content)
            at = end
    return b"".join((*pieces, data[at:])) if pieces else data


def holds_reference(value: Any, depth: int = 1_000) -> bool:
    """Whether there is a reference within the first `depth` levels of the value."""
    if not value or (type(value) is not dict and type(value) is not list):
        return False
    level = [value]
    while level and depth >= 0:
        below: list[Any] = []
        for node in level:
            if type(node) is dict:
                if MEMBER in node and reference_of(node) is not None:
                    return True
                below.extend(node.values())
            elif type(node) is list:
                below.extend(node)
        level = [node for node in below if type(node) is dict or type(node) is list]
        depth -= 1
    return False


def fill(value: Any, content: Callable[[Reference], Any]) -> Any:
    """The value with contents in place of references. Depth is that of the value: what a parser took."""
    if type(value) is dict:
        reference = reference_of(value)
        if reference is not None:
            return content(reference)
        return {key: fill(member, content) for key, member in value.items()}
    return [fill(item, content) for item in value] if type(value) is list else value


def spill(value: Any, limit: int) -> tuple[Any, list[Payload]]:
    """The value with references in place of what does not fit, and what must be stored for them.

    Up to `limit` bytes of JSON it stays as it is. Of a larger object its largest members leave first, so that the
    small ones can still be read at no cost; when that does not suffice, or for anything else, the value leaves as a
    whole. Equal values give equal references. Raises orjson.JSONEncodeError for what is not JSON.
    """
    data = orjson.dumps(value)
    if len(data) <= limit:
        return value, []
    if type(value) is dict and not is_reference(value):
        members = {key: orjson.dumps(member) for key, member in value.items()}
        left = len(data)
        payloads: list[Payload] = []
        result = dict(value)
        for key, encoded in sorted(members.items(), key=lambda item: (-len(item[1]), item[0])):
            if left <= limit or len(encoded) < _MEMBER_BYTES:
                break
            payload = _payload(encoded)
            payloads.append(payload)
            result[key] = payload.reference.to_json()
            left += len(orjson.dumps(result[key])) - len(encoded)
        if left <= limit:
            return result, payloads
    payload = _payload(data)
    return payload.reference.to_json(), [payload]


def _payload(data: bytes) -> Payload:
    return Payload(Reference(hashlib.sha256(data).hexdigest(), len(data)), data)
