"""Text to tokens, by jq 1.8's lexical rules.

The lexer reads every expression, also those that only jq itself can evaluate: it finds where a `${ … }` ends, which
variables are named, and that strings and brackets are closed. What it refuses, jq refuses too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from flint_core.expressions.errors import ExpressionSyntaxError

__all__ = ["Token", "tokenize"]

_SPACE: Final = re.compile(r"(?:[ \t\r\n]+|#(?:\\\r?[\n\\]|[^\r\n])*)+")
_TOKEN: Final = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<field>\.[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<variable>\$(?:[A-Za-z_][A-Za-z0-9_]*::)*[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<word>(?:[A-Za-z_][A-Za-z0-9_]*::)*[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<format>@[A-Za-z0-9_]+)"
    r"|(?P<operator>\?//=?|//=|\|=|\+=|-=|\*=|/=|%=|==|!=|<=|>=|//|\.\.|[.?=;,:|+\-*/%<>$()\[\]{}])"
)
_CHUNK: Final = re.compile(r'[^"\\]+')
_ESCAPES: Final = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_CLOSES: Final = {"(": ")", "[": "]", "{": "}"}
_DEEPEST: Final = 100
"""Brackets and interpolations within each other. Real definitions stay below ten."""
_LONGEST: Final = 65_536
"""Characters of one expression: far more than anybody writes, and compiled in less than a second."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `kind`: number, field, variable, word, format, operator or string.

    `parts` of a string: texts with their escapes resolved, and the tokens of each `\\( … )`.
    """

    kind: str
    text: str
    offset: int
    parts: tuple[str | tuple[Token, ...], ...] = ()


def tokenize(text: str, start: int = 0, *, until_brace: bool = False) -> tuple[tuple[Token, ...], int]:
    """The tokens from `start`, and the offset behind the last one.

    With `until_brace`, stops at the `}` that closes nothing and returns its offset. Raises ExpressionSyntaxError.
    """
    return _tokens(text, start, "}" if until_brace else "", 0)


def _tokens(text: str, start: int, closer: str, depth: int) -> tuple[tuple[Token, ...], int]:
    tokens: list[Token] = []
    open_brackets: list[tuple[str, int]] = []
    position = start
    while True:
        if space := _SPACE.match(text, position):
            position = space.end()
        if position - start > _LONGEST:
            raise ExpressionSyntaxError(f"an expression has at most {_LONGEST} characters", start)
        if position >= len(text):
            if closer:
                raise ExpressionSyntaxError(f"{closer} is missing", len(text))
            break
        if text[position] == '"':
            token, position = _string(text, position, depth + len(open_brackets) + 1)
            tokens.append(token)
            continue
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ExpressionSyntaxError(f"{text[position]!r} is not part of an expression", position)
        token = Token(match.lastgroup, match.group(), position)
        if token.kind == "operator":
            if token.text in _CLOSES:
                open_brackets.append((_CLOSES[token.text], position))
                if depth + len(open_brackets) > _DEEPEST:
                    raise ExpressionSyntaxError("brackets are nested too deeply", position)
            elif token.text in ")]}":
                if not open_brackets and token.text == closer:
                    return tuple(tokens), position
                if not open_brackets or open_brackets.pop()[0] != token.text:
                    raise ExpressionSyntaxError(f"{token.text} closes nothing", position)
        tokens.append(token)
        position = match.end()
    if open_brackets:
        expected, opened = open_brackets[-1]
        raise ExpressionSyntaxError(f"{expected} is missing", opened)
    return tuple(tokens), position


def _string(text: str, start: int, depth: int) -> tuple[Token, int]:
    if depth > _DEEPEST:
        raise ExpressionSyntaxError("strings are nested too deeply", start)
    parts: list[str | tuple[Token, ...]] = []
    chunk: list[str] = []
    position = start + 1
    while True:
        if plain := _CHUNK.match(text, position):
            chunk.append(plain.group())
            position = plain.end()
        if position >= len(text):
            raise ExpressionSyntaxError("the string is not closed", start)
        if text[position] == '"':
            break
        escape = text[position + 1 : position + 2]
        if escape == "(":
            if chunk:
                parts.append("".join(chunk))
                chunk = []
            inner, position = _tokens(text, position + 2, ")", depth)
            parts.append(inner)
            position += 1
        elif escape == "u":
            character, position = _unicode_escape(text, position)
            chunk.append(character)
        elif escape in _ESCAPES and escape:
            chunk.append(_ESCAPES[escape])
            position += 2
        else:
            raise ExpressionSyntaxError(f"\\{escape} is not an escape", position)
    if chunk:
        parts.append("".join(chunk))
    return Token("string", text[start : position + 1], start, tuple(parts)), position + 1


def _unicode_escape(text: str, position: int) -> tuple[str, int]:
    unit = _hex4(text, position)
    if 0xD800 <= unit < 0xDC00 and text[position + 6 : position + 8] == "\\u":
        low = _hex4(text, position + 6)
        if 0xDC00 <= low < 0xE000:
            return chr(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)), position + 12
    if 0xD800 <= unit < 0xE000:
        raise ExpressionSyntaxError("half of a surrogate pair is not a character", position)
    return chr(unit), position + 6


def _hex4(text: str, position: int) -> int:
    digits = text[position + 2 : position + 6]
    if len(digits) != 4 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise ExpressionSyntaxError("\\u needs four hexadecimal digits", position)
    return int(digits, 16)
