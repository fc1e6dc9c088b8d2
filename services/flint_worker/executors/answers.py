"""What an executor of HTTP gives back: the answer in the form that `output` asks for, or the problem that it is."""

from __future__ import annotations

import base64
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


def output_of(answer: Answer, wanted: str, redirect: bool, credentials: Collection[str] = ()) -> Any:
    """The answer as `content`, `response` or `raw`, without the credentials that it was asked with.

    Raises Fault for a status that is an error: outside 2xx, with `redirect` outside 2xx and 3xx.
    """
    if not 200 <= answer.status < (400 if redirect else 300):
        raise _refused(answer)
    redaction = Redaction(credentials)
    if wanted == "raw":
        return base64.b64encode(answer.body).decode() if answer.body else None
    content = _parsed(answer, redaction.spellings)
    if not isinstance(content, RawJson):
        content = redaction.value(content)
    if wanted == "content":
        return content
    headers = {name: redaction.text(value) for name, value in answer.headers.items() if name != "set-cookie"}
    request = {"method": answer.method, "uri": public_uri(answer.url)}
    return {"request": request, "statusCode": answer.status, "headers": headers, "content": content}


def _refused(answer: Answer) -> Fault:
    title = f"HTTP {answer.status} {answer.reason}".rstrip()
    detail = f"{answer.method} {public_uri(answer.url)}"
    if 300 <= answer.status < 400 and "location" in answer.headers:
        detail += " answered with a redirect; set `redirect: true` to follow it"
    wait_ms = retry_after_ms(answer.headers.get("retry-after", ""))
    return Fault(ProblemType.COMMUNICATION, answer.status, title, detail, wait_ms)


def _parsed(answer: Answer, secrets: list[str]) -> Any:
    """JSON where the answer says so (or says nothing and is JSON), text where it is text, else base64.

    Large JSON is not read here; whoever keeps it finds out whether it is JSON.
    """
    body = answer.body
    if not body:
        return None
    content_type = answer.headers.get("content-type", "")
    media = content_type.partition(";")[0].strip().lower()
    if media == "application/json" or media.endswith("+json"):
        if len(body) > _LARGE:
            return RawJson(body, tuple(secrets))
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            title = "The HTTP answer is not the JSON it claims to be"
            detail = f"{answer.method} {public_uri(answer.url)}"
            raise Fault(ProblemType.COMMUNICATION, 502, title, detail) from None
    if not media:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            media = "text/plain"
    if not (media.startswith("text/") or media.endswith("+xml") or media in _TEXT_MEDIA):
        return base64.b64encode(body).decode()
    try:
        return body.decode(_charset(content_type))
    except (UnicodeDecodeError, LookupError):
        return base64.b64encode(body).decode()


def _charset(content_type: str) -> str:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"') or "utf-8"
    return "utf-8"
