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
    lanes: bool = False  # entries go to the worker's lane (decision 0027), not to the run's subject

    def model(self) -> Model:
        """The model to be explored."""
        return Model(
            self.rules,
            self.budget,
            self.faults,
            self.properties,
            steps=self.steps,
            from_start=self.from_start,
            lanes=self.lanes,
        )


_RECORD = frozenset({"I2", "I3", "I4", "I7"})  # what a failover that forgets a commit must not break


def _mix(*faults: str, times: int = 1) -> dict[str, int]:
    return dict.fromkeys(faults, times)


# All rules on: explored completely by the tests, without a violation.
COMPLETE: dict[str, Scenario] = {
    "processes-1": Scenario(_PROCESSES | _DUTIES, 1),
    "processes-1-three-steps": Scenario(_PROCESSES | _DUTIES, 1, steps=3),
    "stores-1": Scenario(_STORES, 1, _SAFE),
    "starts-1": Scenario(_STARTS, 1, from_start=True, steps=1),
    "lost-workers-2": Scenario(_mix("worker_crash", "lease_lapse", times=2), 2),
    "lost-messages-2": Scenario(_mix("drop", "unanswered", "duplicate", "worker_crash"), 2),
    "journal-2": Scenario(_mix("journal_loss", "worker_crash", "drop", "unanswered"), 2),
    "tail-2": Scenario(_mix("tail_loss", "worker_crash"), 2, _SAFE),
    "duties-2": Scenario(_DUTIES | _mix("worker_crash"), 2),
    "purged-3": Scenario(_mix("give", "purge", "worker_crash"), 3),
    "fenced-2": Scenario(_mix("session_lapse", "give"), 2, steps=1),
    "lanes-processes-1": Scenario(_PROCESSES | _DUTIES, 1, lanes=True),
    "lanes-stores-1": Scenario(_STORES, 1, _SAFE, lanes=True),
    "lanes-workers-2": Scenario(_mix("worker_crash", "lease_lapse"), 2, steps=1, lanes=True),
    "lanes-messages-2": Scenario(_mix("drop", "unanswered", "duplicate", "worker_crash"), 2, lanes=True),
    "lanes-journal-2": Scenario(_mix("journal_loss", "worker_crash", "drop", "unanswered"), 2, lanes=True),
    "lanes-tail-2": Scenario(_mix("tail_loss", "block"), 2, _SAFE, lanes=True),
    "lanes-duties-2": Scenario(_mix("block", "purge"), 2, lanes=True),
    "lanes-purged-3": Scenario(_mix("give", "purge", "worker_crash"), 3, lanes=True),
    "failover-2": Scenario(_mix("failover", "scheduler_crash", "worker_crash"), 2, _RECORD),
}

# All rules on, with hundreds of thousands of states: python -m model.check --full NAME.
FULL: dict[str, Scenario] = {
    "processes-2": Scenario(_PROCESSES, 2),
    "processes-2-one-step": Scenario(_PROCESSES, 2, steps=1),
    "processes-duties-2": Scenario(_PROCESSES | _DUTIES, 2),
    "stores-2": Scenario(_STORES, 2, _SAFE),
    "stores-2-one-step": Scenario(_STORES, 2, _SAFE, steps=1),
    "starts-2": Scenario(_STARTS, 2, from_start=True, steps=1),
    "journal-3": Scenario(_mix("journal_loss", "worker_crash", "drop", "unanswered"), 3),
    "lanes-processes-2": Scenario(_PROCESSES, 2, lanes=True),
    "lanes-stores-2-one-step": Scenario(_STORES, 2, _SAFE, steps=1, lanes=True),
    "lanes-workers-2-two-steps": Scenario(_mix("worker_crash", "lease_lapse", times=2), 2, lanes=True),
    "lanes-tail-2-crash": Scenario(_mix("tail_loss", "worker_crash", "block"), 2, _SAFE, lanes=True),
    "lanes-duties-2-all": Scenario(_DUTIES | _mix("worker_crash"), 2, lanes=True),
    "failover-2-all": Scenario(_FAILOVER, 2, _RECORD),
    "failover-3-one-step": Scenario(_FAILOVER, 3, _RECORD, steps=1),
}


def _off(found: str, rules: str, *faults: str, at_once: int = 1, **how: bool) -> tuple[str, Scenario]:
    """Some rules off, one fault of each kind at most; `found` is the property that does not hold then."""
    scenario = Scenario(
        _mix(*faults), at_once, frozenset({found}), without(*rules.split()), 1 if how.get("from_start") else 2, **how
    )
    return found, scenario


# Rules off: the property that the checker finds violated. Where a rule alone is covered by another one, both are off.
BROKEN: dict[str, tuple[str, Scenario]] = {
    "answer before the commit": _off("I1", "answer_after_commit", "scheduler_crash", from_start=True),
    "no sweep": _off("I5", "sweep", from_start=True),
    "late starts are not looked for": _off("I5", "accept_found", "unanswered", from_start=True),
    "no fence": _off("I4", "fence", "session_lapse"),
    "rows are not compared": _off("I3", "change", "failover"),
    "rows are neither compared nor read again": _off("I3", "change reread", "unanswered"),
    "cards are replaced beside the lanes": _off("I8", "reload_exclusive", "unanswered"),
    "cards of new starts are dropped": _off("I5", "reload_exclusive", "unanswered", from_start=True),
    "skipped entries count as folded": _off("I6", "give_judged", "give"),
    "a nonce comes again": _off("I2", "nonce failover", "failover"),
    "entries of any leg": _off("I3", "leg_check claimant cas", "lease_lapse"),
    "entries of any worker": _off("I3", "claimant incarnation", "worker_crash"),
    "entries may be left out": _off("I3", "gap_check", "tail_loss"),
    "jobs for another incarnation": _off("I7", "incarnation", "worker_crash"),
    "a lapsed incarnation goes on": _off("I7", "lapse", "lease_lapse"),
    "a job is taken twice": _off("I2", "taken", "duplicate"),
    "work without a lease": _off("I2", "lease", "lease_lapse"),
    "closed by the deadline alone": _off("I7", "permission", "suspicion"),
    "nobody is asked": _off("I5", "release", "drop"),
    "only unbegun legs are released": _off("I5", "release_ended", "session_lapse"),
    "running legs are released": _off("I7", "release_idle", "suspicion"),
    "released jobs are taken": _off("I7", "revoked", "suspicion"),
    "old generations are not given up": _off("I5", "journal_lost", "journal_loss"),
    "legs at once after a failover": _off("I7", "failover", "failover"),
    "appends without expectation": _off("I6", "cas", "worker_crash"),
    "appends are given up": _off("I8", "retry", "drop"),
    "a purged subject is another's": _off("I8", "empty_subject", "purge"),
    "no barrier": _off("I6", "barrier", "worker_crash"),
    "the barrier is a read": _off("I6", "seal_write", "worker_crash"),
    "any SEAL closes the leg": _off("I8", "seal_own", "session_lapse"),
    "the first of two SEALs is the last": _off("I8", "seal_doubt", "worker_crash", "unanswered", at_once=2),
    "a lost SEAL is waited for": _off("I5", "seal_again", "tail_loss"),
    "streams without generation": _off("I6", "generation", "journal_loss", "worker_crash", at_once=2),
    "sequences of another generation": _off(
        "I8", "sequence_generation empty_subject", "journal_loss", "worker_crash", at_once=2
    ),
    "lanes: entries of any leg": _off("I3", "leg_check claimant", "worker_crash", lanes=True),
    "lanes: entries may be left out": _off("I3", "gap_check", "tail_loss", lanes=True),
    "lanes: work without a lease": _off("I6", "lease", "lease_lapse", lanes=True),
    "lanes: closed by the deadline alone": _off("I6", "permission", "suspicion", lanes=True),
    "lanes: running legs are released": _off("I6", "release_idle", "suspicion", lanes=True),
    "lanes: no barrier": _off("I6", "barrier", "worker_crash", lanes=True),
    "lanes: appends are given up": _off("I8", "retry", "drop", lanes=True),
    "lanes: a purged lane is another's": _off("I8", "empty_subject", "purge", lanes=True),
    "lanes: each leg begins anew": _off("I8", "lane lane_first", "block", lanes=True),
    "lanes: sequences of another generation": _off(
        "I8", "sequence_generation empty_subject lane_first", "journal_loss", lanes=True
    ),
}
