"""What a fold changes for run control: signals that runs took, failures that policies count.

Parts of the fold's statement, used only for a commit that has any of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flint_core.effects import SIGNAL_PREFIX
from flint_store.arrays import integers, texts, uuids
from flint_store.await_changes import AwaitChanges

__all__ = ["CONTROL_PARTS", "FailedRun", "control_parameters", "has_control", "signal_number"]


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run whose failure counts for its workflow's policy. `change`: of the commit."""

    workflow_id: str
    change: int


# Unique index run_signal_seq; primary key of workflow_failure.
CONTROL_PARTS = """,
took AS (
    UPDATE run_signal s SET taken_at = clock_timestamp(), looked = true
    FROM fence, unnest(CAST(:taken_run_ids AS uuid[]), CAST(:taken_numbers AS bigint[])) AS t(run_id, seq)
    WHERE s.run_id = t.run_id AND s.seq = t.seq AND s.taken_at IS NULL RETURNING 1),
failures AS (
    INSERT INTO workflow_failure (namespace_id, workflow_id, run_id, change, failed_at)
    SELECT f.namespace_id, f.workflow_id, f.run_id, f.change, clock_timestamp()
    FROM fence, unnest(CAST(:failed_namespaces AS text[]), CAST(:failed_workflows AS text[]),
                       CAST(:failed_run_ids AS uuid[]), CAST(:failed_changes AS bigint[]))
         AS f(namespace_id, workflow_id, run_id, change)
    ON CONFLICT DO NOTHING RETURNING 1)"""


def signal_number(key: str) -> int:
    """The number of the signal in a message's key: `signal/<number>/<await>`."""
    return int(key.removeprefix(SIGNAL_PREFIX).partition("/")[0])


def has_control(changes: Sequence[AwaitChanges]) -> bool:
    """Whether any of these needs `CONTROL_PARTS`."""
    return any(c.taken or c.failed is not None for c in changes)


def control_parameters(changes: Sequence[AwaitChanges]) -> dict[str, object]:
    """The bind values of `CONTROL_PARTS`."""
    taken = [(c.run_id, signal_number(key)) for c in changes for key in dict.fromkeys(c.taken)]
    failed = [(c, c.failed) for c in changes if c.failed is not None]
    return {
        "taken_run_ids": uuids([run_id for run_id, _ in taken]),
        "taken_numbers": integers([number for _, number in taken]),
        "failed_namespaces": texts([c.namespace for c, _ in failed]),
        "failed_workflows": texts([f.workflow_id for _, f in failed]),
        "failed_run_ids": uuids([c.run_id for c, _ in failed]),
        "failed_changes": integers([f.change for _, f in failed]),
    }
