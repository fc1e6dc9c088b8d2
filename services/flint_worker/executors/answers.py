"""What an executor of HTTP gives back: the answer in the form that `output` asks for, or the problem that it is."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from typing import Any, Final

import orjson

from flint_core.problems import ProblemType
from flint_worker.executors import RawJson
from flint_worker.executors.client import Answer, public_uri, retry_after_ms
from flint_worker.executors.faults import Fault
from flint_worker.redaction import Redaction

__all__ = ["output_of"]

_TEXT_MEDIA: Final = frozenset(
    {"application/xml", "application/yaml", "application/javascript", "application/x-www-form-urlencoded"}
)


_LARGE: Final = 2**20
_EDGE: Final = 4096
_BLANK: Final = b" \t\r\n"
_CHARSET: Final = re.compile(
    r"utf-?(?:8|16|32)(?:[-_]?[lb]e)?|us-ascii|ascii|latin-?1|iso-?8859-\d{1,2}|windows-125\d|cp125\d|koi8-[rtu]"
    r"|big5(?:-?hkscs)?|gb2312|gbk|gb18030|euc-?(?:jp|kr)|shift[-_]?jis|iso-2022-(?:jp|kr)",
    re.IGNORECASE,
)
"""Charsets that are decoded: those of the Web, each in time linear in the text (punycode and idna are not)."""


def output_of(answer: Answer, wanted: str, redirect: bool, credentials: Collection[str] = ()) -> Any:
    """The answer as `content`, `response` or `raw`, without the credentials that it was asked with.

    Raises Fault for a status that is an error: outside 2xx, with `redirect` outside 2xx and 3xx.
    """
    redaction = Redaction(credentials)
    if not 200 <= answer.status < (400 if redirect else 300):
        raise _refused(answer, redaction)
    if wanted == "raw":
        return _base64(answer.body, redaction) if answer.body else None
    content = _parsed(answer, redaction)
    if not isinstance(content, RawJson):
        content = redaction.value(content)
    if wanted == "content":
        return content
    headers = {name: redaction.text(value) for name, value in answer.headers.items() if name != "set-cookie"}
    request = {"method": answer.method, "uri": public_uri(answer.url)}
    return {"request": request, "statusCode": answer.status, "headers": headers, "content": content}


def _refused(answer: Answer, redaction: Redaction) -> Fault:
    title = redaction.text(f"HTTP {answer.status} {answer.reason}".rstrip())
    detail = redaction.text(f"{answer.method} {public_uri(answer.url)}")
    if 300 <= answer.status < 400 and "location" in answer.headers:
        detail += " answered with a redirect; set `redirect: true` to follow it"
    wait_ms = retry_after_ms(answer.headers.get("retry-after", ""))
    return Fault(ProblemType.COMMUNICATION, answer.status, title, detail, wait_ms)


def _parsed(answer: Answer, redaction: Redaction) -> Any:
    """JSON where the answer says so (or says nothing and is JSON), text where it is text, else base64.

    Large JSON is not read here; whoever keeps it finds out whether it is JSON. What says nothing and is large counts as
    JSON when it begins and ends like an object or a list.
    """
    body = answer.body
    if not body:
        return None
    content_type = answer.headers.get("content-type", "")
    media = content_type.partition(";")[0].strip().lower()
    if media == "application/json" or media.endswith("+json"):
        if len(body) > _LARGE:
            return RawJson(body, tuple(redaction.spellings))
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            title = "The HTTP answer is not the JSON it claims to be"
            detail = f"{answer.method} {public_uri(answer.url)}"
            raise Fault(ProblemType.COMMUNICATION, 502, title, detail) from None
    if not media and len(body) > _LARGE:
        if (body[:_EDGE].lstrip(_BLANK)[:1] + body[-_EDGE:].rstrip(_BLANK)[-1:]) in (b"{}", b"[]"):
            return RawJson(body, tuple(redaction.spellings))
        media = "text/plain"
    if not media:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            media = "text/plain"
    if not (media.startswith("text/") or media.endswith("+xml") or media in _TEXT_MEDIA):
        return _base64(body, redaction)
    charset = _charset(content_type)
    if not _CHARSET.fullmatch(charset):
        return _base64(body, redaction)
    try:
        return body.decode(charset)
    except (UnicodeDecodeError, LookupError):
        return _base64(body, redaction)


def _base64(body: bytes, redaction: Redaction) -> str:
    """The bytes as text; what is secret goes before, while it can be seen."""
    return base64.b64encode(redaction.data(body)).decode()


def _charset(content_type: str) -> str:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"') or "utf-8"
    return "utf-8"
