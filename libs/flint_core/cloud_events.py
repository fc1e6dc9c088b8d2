"""CloudEvents 1.0 in the JSON format: what makes one valid, and what Flint fills in.

An event is a JSON object whose members are its context attributes, and `data` or `data_base64`. Pure.
Source: CloudEvents specification 1.0.2, JSON event format 1.0.2.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

__all__ = [
    "ID_CHARACTERS",
    "LIFECYCLE_PREFIX",
    "SOURCE_CHARACTERS",
    "TYPE_CHARACTERS",
    "attribute_problems",
    "complete_event",
    "event_time",
]

ID_CHARACTERS: Final = 256
SOURCE_CHARACTERS: Final = 2048
TYPE_CHARACTERS: Final = 256
_TEXT_CHARACTERS: Final = 2048
_EXTENSIONS: Final = 50
_PARTS: Final = ("data", "data_base64")

LIFECYCLE_PREFIX: Final = "io.serverlessworkflow."
"""Types of the engine's own lifecycle events begin with it."""

_NAME: Final = re.compile(r"[a-z0-9]{1,64}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)")
_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?:\s*;[\x20-\x7e]*)?")
_ABSOLUTE_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+")
_URI_REFERENCE: Final = re.compile(r"[^\s<>\"{}|\\^`\x00-\x20]+")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def attribute_problems(event: Any) -> list[tuple[str, str]]:
    """What is wrong with an event, as (attribute, description); empty when nothing is."""
    if not isinstance(event, dict):
        return [("", "must be a JSON object: a CloudEvent in the JSON format")]
    problems: list[tuple[str, str]] = []
    for name, most in (("id", ID_CHARACTERS), ("source", SOURCE_CHARACTERS), ("type", TYPE_CHARACTERS)):
        problem = _text(event.get(name), most)
        if problem:
            problems.append((name, problem))
    if event.get("specversion") != "1.0":
        problems.append(("specversion", "must be «1.0»"))
    source = event.get("source")
    if isinstance(source, str) and source and not _URI_REFERENCE.fullmatch(source):
        problems.append(("source", "must be a URI reference, such as /orders or https://example.com/orders"))
    problems += _optional(event)
    others = [name for name in event if name not in _KNOWN and event[name] is not None]
    if len(others) > _EXTENSIONS:
        problems.append(("", f"has more than {_EXTENSIONS} extension attributes"))
    for name in others[:_EXTENSIONS]:
        problem = _extension(name, event[name])
        if problem:
            problems.append((name[:64], problem))
    return problems


def _optional(event: Mapping[str, Any]) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []
    subject, time = event.get("subject"), event.get("time")
    kind, schema = event.get("datacontenttype"), event.get("dataschema")
    if subject is not None and (problem := _text(subject, _TEXT_CHARACTERS)):
        problems.append(("subject", problem))
    if time is not None and not (isinstance(time, str) and _TIME.fullmatch(time) and event_time(time) is not None):
        problems.append(("time", "must be a moment after RFC 3339, such as 2026-01-31T12:00:00Z"))
    if kind is not None and not (isinstance(kind, str) and len(kind) <= 256 and _MEDIA_TYPE.fullmatch(kind)):
        problems.append(("datacontenttype", "must be a media type, such as application/json"))
    if schema is not None and not (
        isinstance(schema, str) and len(schema) <= _TEXT_CHARACTERS and _ABSOLUTE_URI.fullmatch(schema)
    ):
        problems.append(("dataschema", "must be an absolute URI"))
    encoded = event.get("data_base64")
    if encoded is not None:
        if event.get("data") is not None:
            problems.append(("data_base64", "cannot stand beside data"))
        try:
            base64.b64decode(encoded if isinstance(encoded, str) else "?", validate=True)
        except (ValueError, binascii.Error):
            problems.append(("data_base64", "must be bytes in base64"))
    return problems


_KNOWN: Final = frozenset(
    {"id", "source", "type", "specversion", "subject", "time", "datacontenttype", "dataschema", *_PARTS}
)


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str) or not value:
        return "is required" if value is None or value == "" else "must be a string"
    if len(value) > most:
        return f"has more than {most} characters"
    return "holds control characters" if _CONTROLS.search(value) else ""


def _extension(name: str, value: Any) -> str:
    if not _NAME.fullmatch(name):
        return "attribute names have lower-case letters and digits only, at most 64"
    if isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return "" if -(2**31) <= value < 2**31 else "integers must fit 32 bits"
    if isinstance(value, str):
        return f"has more than {_TEXT_CHARACTERS} characters" if len(value) > _TEXT_CHARACTERS else ""
    return "must be a string, an integer or a boolean: structured content belongs into data"


def complete_event(event: Mapping[str, Any], *, event_id: str, source: str, at_ms: int) -> dict[str, Any]:
    """The event with what its author left out: id, source, specversion, time, and the content type of JSON data."""
    complete = {name: value for name, value in event.items() if value is not None or name == "data"}
    complete.setdefault("specversion", "1.0")
    complete.setdefault("id", event_id)
    complete.setdefault("source", source)
    if "time" not in complete:
        complete["time"] = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
    if "data" in complete:
        complete.setdefault("datacontenttype", "application/json")
    return complete


def event_time(text: str) -> datetime | None:
    """The moment in a `time` attribute, or None when it is none."""
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError:
        return None
