"""What a diagnosis finds."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Finding", "Verdict"]


class Verdict(enum.StrEnum):
    """How a part is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One part, how it is, what was seen, and what to do when that is not well."""

    part: str
    verdict: Verdict
    detail: str
    advice: str = ""

    @classmethod
    def ok(cls, part: str, detail: str) -> Finding:
        """All is well."""
        return cls(part, Verdict.OK, detail)

    @classmethod
    def warning(cls, part: str, detail: str, advice: str) -> Finding:
        """It works, but not as it should, or not for long."""
        return cls(part, Verdict.WARNING, detail, advice)

    @classmethod
    def failed(cls, part: str, detail: str, advice: str) -> Finding:
        """It does not work."""
        return cls(part, Verdict.FAILED, detail, advice)
