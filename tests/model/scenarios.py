"""The scenarios: which rules, which faults, which properties."""

from __future__ import annotations

from dataclasses import dataclass, field

from model.rules import ALL_ON, Rules, without
from model.search import Model

__all__ = ["BROKEN", "COMPLETE", "FULL", "Scenario"]

_SAFE = frozenset({"I1", "I2", "I3", "I4", "I5", "I7"})
_INTACT = _SAFE | {"I6", "I8"}  # these two promise something of a journal that has lost nothing

_PROCESSES = {
    "worker_crash": 2, "lease_lapse": 2, "scheduler_crash": 2, "session_lapse": 2,
    "suspicion": 1, "duplicate": 1, "drop": 1, "unanswered": 1,
}  # fmt: skip
_STORES = {
    "worker_crash": 1, "lease_lapse": 1, "scheduler_crash": 1, "session_lapse": 1, "suspicion": 1, "duplicate": 1,
    "drop": 1, "unanswered": 1, "tail_loss": 1, "journal_loss": 1, "etcd_loss": 1,
}  # fmt: skip
_DUTIES = {"drain": 1, "block": 1, "give": 1, "purge": 1}
_STARTS = {"scheduler_crash": 2, "session_lapse": 1, "drop": 1, "unanswered": 1, "etcd_loss": 1}
_FAILOVER = {"failover": 1, "scheduler_crash": 1, "session_lapse": 1, "worker_crash": 1, "suspicion": 1}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One exploration."""

    budget: dict[str, int]
    faults: int
    properties: frozenset[str] = _INTACT
    rules: Rules = field(default=ALL_ON)
    steps: int = 2
    from_start: bool = False

    def model(self) -> Model:
        """The model to be explored."""
        return Model(
            self.rules, self.budget, self.faults, self.properties, steps=self.steps, from_start=self.from_start
        )


# All rules on: complete, no violation. These run with the tests.
COMPLETE: dict[str, Scenario] = {
    "processes-1": Scenario(_PROCESSES | _DUTIES, 1),
    "stores-1": Scenario(_STORES, 1, _SAFE),
}

# Complete only with patience: python -m model.check --full NAME.
FULL: dict[str, Scenario] = {
    "processes-2": Scenario(_PROCESSES, 2),
}

BROKEN: dict[str, tuple[str, Scenario]] = {}
