"""What an HTTP request is made of: headers, and a body in the form that its content type asks for."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import httpx
import orjson

from flint_worker.executors import RawJson, ResolvedCall
from flint_worker.executors.arguments import has_controls
from flint_worker.executors.faults import invalid

__all__ = ["add_standard_headers", "body_of", "headers_of", "text_of"]

_FRAMING: Final = frozenset({"connection", "content-length", "keep-alive", "te", "transfer-encoding", "upgrade"})
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_TRACE: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_FORM: Final = "application/x-www-form-urlencoded"
_MULTIPART: Final = "multipart/form-data"
_PARTS: Final = 1000


def text_of(value: Any) -> str:
    """A value within an address or a header: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def headers_of(given: Mapping[str, Any]) -> httpx.Headers:
    """The headers of a call; null leaves one out, an array sends one several times. Raises Fault (validation)."""
    pairs: list[tuple[str, str]] = []
    for name, value in given.items():
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            text = text_of(item)
            if _HEADER.fullmatch(name) is None or name.lower() in _FRAMING or has_controls(text.replace("\t", " ")):
                raise invalid(f"/headers: {name[:200]!r} cannot be sent")
            try:
                pairs.append((name, text.encode().decode("ascii")))
            except UnicodeDecodeError:
                raise invalid(f"/headers: {name!r} holds characters beyond ASCII") from None
    return httpx.Headers(pairs)


def add_standard_headers(headers: httpx.Headers, call: ResolvedCall) -> None:
    """The idempotency key and the trace, unless the call has its own."""
    if call.idempotency_key:
        headers.setdefault("Idempotency-Key", call.idempotency_key)
    if _TRACE.fullmatch(call.trace_id):
        headers.setdefault("traceparent", f"00-{call.trace_id}-{secrets.token_hex(8)}-01")


def body_of(body: Any, headers: httpx.Headers) -> bytes | None:
    """The body's bytes; sets the content type where none is given. Raises Fault (validation).

    Text is sent as it is. `{base64: …}` under a content type that is not JSON is sent as bytes. An object is a form
    under the content types of forms. Anything else is JSON.
    """
    if body is None:
        return None
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(body, RawJson):
        as_json = not media or media == "application/json" or media.endswith("+json")
        if as_json and not body.data.startswith(b'"'):
            headers.setdefault("content-type", "application/json")
            return body.data
        body = orjson.loads(body.data)
    if isinstance(body, str):
        headers.setdefault("content-type", "text/plain; charset=utf-8")
        return body.encode()
    if isinstance(body, dict):
        if media == _FORM:
            return urlencode([(name, text_of(item)) for name, item in _items(body)]).encode()
        if media == _MULTIPART:
            return _multipart(body, headers)
        if media and body.keys() == {"base64"} and media != "application/json" and not media.endswith("+json"):
            return _bytes(body["base64"], "/body")
    headers.setdefault("content-type", "application/json")
    return orjson.dumps(body)


def _items(form: Mapping[str, Any]) -> list[tuple[str, Any]]:
    pairs = [(name, item) for name, value in form.items() for item in (value if isinstance(value, list) else [value])]
    return [(name, item) for name, item in pairs if item is not None]


def _multipart(form: Mapping[str, Any], headers: httpx.Headers) -> bytes:
    """RFC 7578. A part is a value, or `{text or base64 or json, filename, content_type}`."""
    parts = _items(form)
    if len(parts) > _PARTS:
        raise invalid(f"/body: more than {_PARTS} parts")
    boundary = secrets.token_hex(16)
    headers["content-type"] = f"{_MULTIPART}; boundary={boundary}"
    encoded: list[bytes] = []
    for name, item in parts:
        filename, media, content = _part(name, item)
        disposition = f'form-data; name="{_quoted(name)}"'
        if filename is not None:
            disposition += f'; filename="{_quoted(filename)}"'
        head = f"--{boundary}\r\nContent-Disposition: {disposition}\r\n"
        if media:
            head += f"Content-Type: {media}\r\n"
        encoded += [head.encode(), b"\r\n", content, b"\r\n"]
    encoded.append(f"--{boundary}--\r\n".encode())
    return b"".join(encoded)


def _part(name: str, item: Any) -> tuple[str | None, str, bytes]:
    place = f"/body/{name[:100]}"
    if not isinstance(item, dict):
        return None, "", text_of(item).encode()
    kinds = item.keys() & {"text", "base64", "json"}
    if len(kinds) != 1 or item.keys() - {"text", "base64", "json", "filename", "content_type"}:
        detail = f"{place}: a part is a value, or has one of text, base64 and json beside filename and content_type"
        raise invalid(detail)
    filename, media = item.get("filename"), item.get("content_type")
    if not isinstance(filename, str | None) or not isinstance(media, str | None) or has_controls(media or ""):
        raise invalid(f"{place}: filename and content_type are texts")
    if "base64" in item:
        return filename, media or "application/octet-stream", _bytes(item["base64"], place)
    if "json" in item:
        return filename, media or "application/json", orjson.dumps(item["json"])
    return filename, media or ("text/plain; charset=utf-8" if filename else ""), text_of(item["text"]).encode()


def _quoted(text: str) -> str:
    """As browsers write it in multipart/form-data (WHATWG)."""
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _bytes(text: Any, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise invalid(f"{place}: not base64") from None
