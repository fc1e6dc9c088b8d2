"""Secrets are found in the base64 that Flint makes of bytes, however they lie in it."""

from __future__ import annotations

import base64

import httpx
import orjson
import pytest

from flint_worker.executors import RawJson
from flint_worker.executors.answers import output_of
from flint_worker.executors.client import Answer
from flint_worker.executors.faults import Fault
from flint_worker.redaction import Redaction

SECRET = "hunter2-is-not-a-password"


def answer(body: bytes, content_type: str = "", status: int = 200, reason: str = "OK") -> Answer:
    headers = httpx.Headers({"content-type": content_type} if content_type else {})
    return Answer(status, reason, headers, body, "GET", httpx.URL("http://flint.test/"))


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("secret", [SECRET, "ab>?ÿÿ~~", 'quo"ted\\secret'])
def test_base64_of_bytes_that_hold_a_secret(before, encode, secret):
    packed = encode(b"\xff" * before + secret.encode() + b"\xfe" * 5).decode()
    cleaned = Redaction([secret]).value({"bytes": packed})["bytes"]
    assert "***" in cleaned
    # Only the characters at the edges are left of it: four of its bytes would be found.
    for place in range(len(packed)):
        piece = packed[place : place + 6]
        inner = before * 8 <= place * 6 and (place + 6) * 6 <= (before + len(secret.encode())) * 8
        assert not (inner and piece in cleaned)


def test_other_base64_stays():
    packed = base64.b64encode(bytes(range(256))).decode()
    assert Redaction([SECRET]).value(packed) == packed


@pytest.mark.parametrize("wanted", ["raw", "content"])
def test_a_body_is_cleaned_before_it_is_encoded(wanted):
    body = b"\xff\x00" + SECRET.encode() + b"\xfe"
    given = output_of(answer(body, "application/octet-stream"), wanted, False, [SECRET])
    assert base64.b64decode(given, validate=True) == b"\xff\x00***\xfe"


def test_a_reason_phrase_is_cleaned():
    with pytest.raises(Fault) as raised:
        output_of(answer(b"", status=400, reason=f"no {SECRET}"), "content", False, [SECRET])
    assert raised.value.title == "HTTP 400 no ***"


@pytest.mark.parametrize("charset", ["punycode", "idna", "utf-7", "unicode_escape", "rot13", "zlib", "mbcs", "nope"])
def test_charsets_that_are_not_of_the_web_become_base64(charset):
    body = b"a" * 3_000_000 + b"-" + b"9" * 200_000
    given = output_of(answer(body, f"text/plain; charset={charset}"), "content", False)
    assert given == base64.b64encode(body).decode()


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("utf-8", "ü€"),
        ("UTF-16", "ü€"),
        ("utf-32le", "ü€"),
        ("latin-1", "ü"),
        ("ISO-8859-15", "€"),
        ("windows-1252", "€"),
        ("koi8-r", "Я"),
        ("Shift_JIS", "日本"),
        ("EUC-KR", "한국"),
        ("gb18030", "中文"),
        ("big5", "中文"),
    ],
)
def test_charsets_of_the_web_are_decoded(charset, text):
    given = output_of(answer(text.encode(charset), f"text/plain; charset={charset}"), "content", False)
    assert given == text


def test_large_json_that_nobody_announced_is_not_read_here():
    body = b" \n" + orjson.dumps({"a": ["x" * 100] * 20_000}) + b"\n"
    given = output_of(answer(body), "content", False, [SECRET])
    assert isinstance(given, RawJson)
    assert given.data is body
    assert SECRET in given.redact
    text = "[not JSON " * 200_000
    assert output_of(answer(text.encode()), "content", False) == text
