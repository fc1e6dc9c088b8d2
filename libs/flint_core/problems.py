"""Errors as data: problems after RFC 7807, with the specification's standard types."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Problem", "ProblemType", "canonical_type"]


class ProblemType:
    """URIs of the standard error types (DSL 1.0.3, «Standard error types»), and Flint's own below flint.dev.

    Catching treats both path families and both domains of the standard types as equal; the machine raises these.
    """

    _BASE: Final = "https://serverlessworkflow.io/spec/1.0.0/errors/"
    CONFIGURATION: Final = _BASE + "configuration"  # 400
    VALIDATION: Final = _BASE + "validation"  # 400
    EXPRESSION: Final = _BASE + "expression"  # 400
    AUTHENTICATION: Final = _BASE + "authentication"  # 401
    AUTHORIZATION: Final = _BASE + "authorization"  # 403
    TIMEOUT: Final = _BASE + "timeout"  # 408
    COMMUNICATION: Final = _BASE + "communication"  # 500
    RUNTIME: Final = _BASE + "runtime"  # 500
    PAYLOAD_TOO_LARGE: Final = "https://flint.dev/errors/payload-too-large"  # 413
    LIMIT_EXCEEDED: Final = "https://flint.dev/errors/limit-exceeded"  # 429: step limit, depth
    CONCURRENCY: Final = "https://flint.dev/errors/concurrency-limit"  # 429: the run's key was full, it does not wait
    CANCELLED: Final = "https://flint.dev/errors/cancelled"  # 499: somebody asked the run to end
    TERMINATED: Final = "https://flint.dev/errors/terminated"  # 499: somebody ended the run at once
    POISON: Final = "https://flint.dev/errors/poison"  # 500: the run lost its worker too often at one position
    UNSTORABLE: Final = "https://flint.dev/errors/unstorable"  # 500: the record refused the entry


@dataclass(frozen=True, slots=True)
class Problem:
    """One error of a run or a step. `instance` is the JSON pointer of the step that raised it."""

    type: str
    status: int
    title: str
    detail: str = ""
    instance: str = ""

    def to_json(self) -> dict[str, Any]:
        """The problem as the JSON object that expressions see; empty members are left out."""
        document: dict[str, Any] = {"type": self.type, "status": self.status, "title": self.title}
        if self.detail:
            document["detail"] = self.detail
        if self.instance:
            document["instance"] = self.instance
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Problem:
        """The reverse of `to_json`; unknown members are ignored."""
        return cls(
            type=str(document.get("type", "about:blank")),
            status=int(document.get("status", 0)),
            title=str(document.get("title", "")),
            detail=str(document.get("detail", "")),
            instance=str(document.get("instance", "")),
        )


_STANDARD: Final = re.compile(
    r"https?://(?:www\.)?(?:serverlessworkflow\.io|open-workflow-specification\.org)"
    r"/(?:spec/\d+\.\d+\.\d+/errors|dsl/errors/types)"
    r"/(configuration|validation|expression|authentication|authorization|timeout|communication|runtime)/?"
)


def canonical_type(uri: str) -> str:
    """The URI under which an error type is compared.

    The standard types are in use below two domains (the specification was renamed) and in two path families
    (`/spec/1.0.0/errors/…` and `/dsl/errors/types/…`); all of them become the one that `ProblemType` names.
    """
    match = _STANDARD.fullmatch(uri)
    return ProblemType._BASE + match.group(1) if match else uri
