"""The two ways in which an expression is wrong: in its text, or on its data."""

from __future__ import annotations

__all__ = ["ExpressionFault", "ExpressionSyntaxError"]


class ExpressionSyntaxError(ValueError):
    """An expression's text is wrong. `offset` counts characters from the start of the text that was compiled."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


class ExpressionFault(Exception):
    """A well-formed expression failed on its data, as jq would have failed. `detail` says why, in one line."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail
