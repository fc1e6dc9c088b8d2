"""Lists by state: indexes in which the state comes before the run, so that a rare one is found among many others."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    # A change of state writes to all indexes of the row whatever they hold, so these cost a run what those before did.
    "DROP INDEX run_unfinished",
    "CREATE INDEX run_unfinished ON run (namespace_id, state, run_id) WHERE state IN (1, 2, 3, 7)",
    "DROP INDEX run_unsuccessful",
    "CREATE INDEX run_unsuccessful ON run (namespace_id, state, run_id) WHERE state IN (5, 6)",
    # Only of what ended badly: nothing for all other runs.
    "CREATE INDEX run_unsuccessful_definition ON run (definition_id, state, run_id) WHERE state IN (5, 6)",
)


def upgrade() -> None:
    """Replace them; older builds read the same by the new ones, and slower only where a state is rare."""
    for statement in STATEMENTS:
        op.execute(statement)
