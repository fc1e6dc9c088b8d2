"""Findings: what is wrong, or doubtful, about a definition, and where."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["DefinitionLimits", "Finding", "Guarded", "Rule", "Severity", "suggestion"]


class Severity(StrEnum):
    """An error refuses the definition; a warning does not."""

    ERROR = "error"
    WARNING = "warning"


class Rule:
    """Names of the rules that findings cite."""

    YAML = "yaml"  # not well-formed
    LIMIT = "limit"  # too large, too deep, too many
    DUPLICATE_KEY = "duplicate-key"
    UNKNOWN_FIELD = "unknown-field"
    MISSING_FIELD = "missing-field"
    WRONG_TYPE = "wrong-type"
    INVALID_VALUE = "invalid-value"
    UNSUPPORTED = "unsupported"
    EXPRESSION = "expression"
    SECRET = "secret"  # noqa: S105 - the name of a rule
    REFERENCE = "reference"  # a name that nothing defines
    RESOURCE = "resource"  # a text from elsewhere that cannot be read
    SCHEMA = "schema"
    ARGUMENTS = "arguments"
    NO_TIMEOUT = "no-timeout"
    UNREACHABLE = "unreachable"
    UNKNOWN_FUNCTION = "unknown-function"  # no function worker ever registered it
    # Advice: see `advice.py`.
    RETRY_NOT_IDEMPOTENT = "retry-not-idempotent"
    RETRY_EVERYTHING = "retry-everything"
    WAIT_IN_RETRY = "wait-in-retry"
    SWALLOWED_ERROR = "swallowed-error"
    DISCARDED_ERROR = "discarded-error"
    EXPOSED_SECRET = "exposed-secret"  # noqa: S105 - the name of a rule
    COULD_FORK = "could-fork"
    COULD_BE_PARALLEL = "could-be-parallel"
    ENDLESS_LOOP = "endless-loop"
    TIMEOUT_TOO_SHORT = "timeout-too-short"
    SHADOWED_NAME = "shadowed-name"
    LARGE_CONSTANT = "large-constant"
    UNUSED = "unused"
    NO_EFFECT = "no-effect"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `pointer` is a JSON pointer into the definition; line and column count from 1."""

    severity: Severity
    rule: str
    message: str
    pointer: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Guarded:
    """An expression that only jq itself can check, and where it stands. `variables`: what its place defines."""

    source: str
    variables: frozenset[str]
    pointer: str
    line: int
    column: int
    within: str = ""  # the text from elsewhere that it stands in

    def refused(self, reason: str) -> Finding:
        """The finding when jq refuses it."""
        place = f"in {self.within}: " if self.within else ""
        message = f"{place}jq refuses '{self.source[:200]}': {reason}"
        return Finding(Severity.ERROR, Rule.EXPRESSION, message, self.pointer, self.line, self.column)


@dataclass(frozen=True, slots=True)
class DefinitionLimits:
    """Bounds of a definition."""

    definition_bytes: int = 1_048_576
    depth: int = 64
    nodes: int = 100_000  # after aliases are expanded
    tasks: int = 10_000
    filters: int = 100  # of one listen
    parallel: int = 1_000  # iterations of one loop at once
    version: int = 64  # characters
    title: int = 256
    summary: int = 4_096
    resources: int = 32  # texts from elsewhere: functions of catalogs, schemas


def suggestion(word: str, known: Collection[str]) -> str:
    """“did you mean …?” for a word that is close to a known one, else the empty string."""
    near = [name for name in known if len(word) > 2 and name.startswith(word)]
    close = near[:1] or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
