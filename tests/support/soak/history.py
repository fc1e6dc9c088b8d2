"""What the clients of a trial saw, as they saw it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flint_sdk import Run
from support.soak.workflows import Kind

__all__ = ["Count", "History", "Seen", "Started"]


@dataclass
class Started:
    """One start, under its own request id. `runs`: ids that answers named; all must be one.

    `ended_by`, `reset`: whether somebody asked for its end, or took it back; that may have happened though no answer
    came.
    """

    kind: Kind
    request_id: str
    given: Mapping[str, Any]
    runs: set[str] = field(default_factory=set)
    ended_by: str = ""
    reset: bool = False

    @property
    def run(self) -> str:
        """Its id; empty while no answer has named it."""
        return min(self.runs, default="")


@dataclass(frozen=True)
class Seen:
    """A run as one reader saw it."""

    change: int
    state: str
    output: Any
    error: str

    @classmethod
    def of(cls, run: Run) -> Seen:
        """What there is of it."""
        return cls(run.change, run.state.value, run.output, "" if run.error is None else run.error.type)


@dataclass
class Count:
    """Calls of one kind: how many were answered, refused as its state demands, or not answered."""

    answered: int = 0
    refused: int = 0
    unanswered: int = 0


@dataclass
class History:
    """Everything that clients saw."""

    starts: dict[str, Started] = field(default_factory=dict)
    reads: dict[str, list[Seen]] = field(default_factory=dict)
    """By run, in the order of one reader's reads."""
    watches: list[tuple[str, list[Seen]]] = field(default_factory=list)
    """Of each watch: the run and what came, in order."""
    taken: set[str] = field(default_factory=set)
    """Runs of which an update said that they took a signal."""
    surprises: list[str] = field(default_factory=list)
    """Answers that no fault explains."""
    counts: dict[str, Count] = field(default_factory=dict)

    def by_run(self) -> dict[str, Started]:
        """Starts by the run that they were answered with."""
        return {started.run: started for started in self.starts.values() if started.runs}

    def told(self) -> str:
        """The counts, for people."""
        return ", ".join(
            f"{name} {count.answered}"
            + (f" (refused {count.refused})" if count.refused else "")
            + (f" (no answer {count.unanswered})" if count.unanswered else "")
            for name, count in sorted(self.counts.items())
        )
