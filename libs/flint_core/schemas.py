"""JSON schemas, compiled within bounds. Apart from the plan: an evaluator process needs them and nothing else of it."""

from __future__ import annotations

from typing import Any, Final

import jsonschema_rs

from flint_core.schema_bounds import check_bounds

__all__ = ["Schema"]

_LINEAR: Final = jsonschema_rs.RegexOptions(size_limit=2**20, dfa_size_limit=2**20)
_NO_PATTERN: Final = ' is not a "regex"'


class Schema:
    """A compiled JSON schema. Never reads from network or disk; patterns take time linear in the text.

    A pattern that only backtracking could match (look-around, back references) raises what other bad schemas raise.
    """

    __slots__ = ("_validator", "document")

    def __init__(self, schema: Any) -> None:
        check_bounds(schema)
        self.document = schema
        try:
            self._validator = jsonschema_rs.validator_for(
                schema, retriever=_no_retrieval, validate_formats=True, pattern_options=_LINEAR
            )
        except jsonschema_rs.ValidationError as error:
            if not error.message.endswith(_NO_PATTERN):
                raise
            pattern = error.message.removesuffix(_NO_PATTERN)[:200]
            raise ValueError(
                f"the pattern {pattern} is no regular expression that is matched in linear time "
                "(no look-around, no back references, no very large repetitions)"
            ) from None

    def first_error(self, value: Any) -> str | None:
        """Why the value does not match, for a person; None when it does."""
        if self._validator.is_valid(value):
            return None
        error = next(iter(self._validator.iter_errors(value)))
        path = "/".join(str(part) for part in error.instance_path)
        return f"{error.message[:500]}{f' (at /{path})' if path else ''}"


def _no_retrieval(uri: str) -> Any:
    raise ValueError(f"a schema may not refer to another document ({uri})")
