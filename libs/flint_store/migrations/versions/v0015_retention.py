"""Retention: how long a workflow's runs are kept, and what was deleted."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    # How long ended runs are kept, as the definition says it, seconds; 0: for ever; NULL: it says nothing.
    "ALTER TABLE workflow_version ADD COLUMN retention_s bigint",
    # What was deleted of a namespace so far; '' is what belongs to none. Changed by the commits that delete.
    """
    CREATE TABLE retention_tally (
        namespace_id text COLLATE "C" PRIMARY KEY,
        runs         bigint NOT NULL DEFAULT 0,
        records      bigint NOT NULL DEFAULT 0,
        deleted_at   timestamptz NOT NULL DEFAULT clock_timestamp()
    ) WITH (fillfactor = 50)
    """,
    # When the owner of a group last looked at all of its runs.
    """
    CREATE TABLE retention_pass (
        group_id smallint PRIMARY KEY,
        ended_at timestamptz NOT NULL
    ) WITH (fillfactor = 50)
    """,
    # The last run of a schedule is kept: the next time may depend on it.
    "CREATE INDEX schedule_last_run ON schedule (last_run_id) WHERE last_run_id IS NOT NULL",
)


def upgrade() -> None:
    """Create what it needs; older builds do not know it and are not disturbed."""
    for statement in STATEMENTS:
        op.execute(statement)
