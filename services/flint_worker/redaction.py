"""Taking secrets out of what a call brings back, before it reaches the machine and so the journal (promise 12).

A server may echo a token, an address may hold one, a database may quote a value: whatever a call was given must not
come back in its output or its problem. Texts are looked at, and base64 within them, which is what binary content
becomes here; a secret that the other side transformed on its own (hashed, translated) cannot be recognised.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote, quote_plus

import orjson

from flint_core.problems import Problem

__all__ = ["MARK", "Redaction"]

MARK: Final = "***"
_SECRET_NAME: Final = re.compile(r"pass|secret|token|key|assertion|credential", re.IGNORECASE)
_SHORTEST: Final = 4
"""A shorter secret stands in too many innocent texts, and protects nothing."""


class Redaction:
    """Replaces the secrets of one call. Immutable."""

    __slots__ = ("_spellings",)

    def __init__(self, secrets: Iterable[str]) -> None:
        parts = {part for secret in secrets for part in (secret, *_within(secret))}
        spellings = {spelling for part in parts if len(part) >= _SHORTEST for spelling in _spellings(part)}
        spellings |= {packed for spelling in spellings for packed in _in_base64(spelling)}
        # The longest first: one secret may be a part of another.
        self._spellings = sorted(spellings, key=lambda spelling: (-len(spelling), spelling))

    @property
    def spellings(self) -> list[str]:
        """All that is replaced, the longest first: for a process that does it with a value which is not read here."""
        return self._spellings

    def value(self, value: Any) -> Any:
        """The JSON value with every text in it cleaned, names of members included. Never changes it in place."""
        if not self._spellings:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(name): self.value(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return value

    def problem(self, problem: Problem) -> Problem:
        """The problem with its texts cleaned; also the beginning of a secret where a text was cut within it."""
        if not self._spellings:
            return problem
        return replace(
            problem,
            type=self.text(problem.type),
            title=self._cut(self.text(problem.title)),
            detail=self._cut(self.text(problem.detail)),
        )

    def text(self, text: str) -> str:
        """The text with every secret replaced."""
        for spelling in self._spellings:
            if spelling in text:
                text = text.replace(spelling, MARK)
        return text

    def data(self, data: bytes) -> bytes:
        """The bytes with every secret replaced, for what is about to be encoded."""
        for spelling in self._spellings:
            data = data.replace(spelling.encode("utf-8", "surrogatepass"), MARK.encode())
        return data

    def _cut(self, text: str) -> str:
        for spelling in self._spellings:
            for length in range(min(len(spelling) - 1, len(text)), _SHORTEST - 1, -1):
                if text.endswith(spelling[:length]):
                    return text[:-length] + MARK
        return text


def _within(secret: str) -> set[str]:
    """The secrets within a secret that is a JSON object, such as the password of an authentication policy.

    Only members whose names say so: such an object also holds words that are none (a grant, a scope).
    """
    if not secret.lstrip().startswith("{"):
        return set()
    try:
        document = orjson.loads(secret)
    except orjson.JSONDecodeError:
        return set()
    found: set[str] = set()
    waiting = [document]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            waiting.extend(node.values())
            found |= {part for name, part in node.items() if isinstance(part, str) and _SECRET_NAME.search(name)}
    return found


def _spellings(secret: str) -> set[str]:
    """The secret as it is, as it stands in an address, and as it is quoted in JSON and in the words of Python."""
    return {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote(secret, safe="/:@!$&'()*+,;="),
        quote_plus(secret),
        orjson.dumps(secret).decode()[1:-1],
        repr(secret)[1:-1],
    }


def _in_base64(text: str) -> set[str]:
    """What always stands in base64, of either alphabet, of bytes that hold the text.

    There are three ways for it to lie in groups of three bytes. The characters at its edges, which hold bits of its
    neighbours too, are left: at most six bits of the text at each end.
    """
    data = text.encode("utf-8", "surrogatepass")
    found: set[str] = set()
    for before in range(3):
        packed = base64.b64encode(bytes(before) + data + bytes(2))
        sure = packed[(before * 8 + 5) // 6 : (before + len(data)) * 8 // 6].decode()
        if len(sure) >= _SHORTEST:
            found |= {sure, sure.replace("+", "-").replace("/", "_")}
    return found
