"""Schedules: when workflows start by themselves. And the level of runs whose start names none."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATEMENTS = (
    # schedule: flint_core's Schedule as JSON with `timezone`; NULL: none. level: NULL: the usual one.
    """
    ALTER TABLE workflow_version ADD COLUMN schedule bytea,
        ADD COLUMN level smallint CHECK (level BETWEEN 0 AND 9)
    """,
    # The schedule in force of a workflow: that of its latest version. schedule_id is new with each version; its shard
    # is made of the workflow's name. next_fire_at: when the owner of the group has to look at it. claimed, consumed:
    # keys of events, for schedules of the kind `on`.
    """
    CREATE TABLE schedule (
        schedule_id   uuid PRIMARY KEY,
        namespace_id  text COLLATE "C" NOT NULL REFERENCES namespace,
        workflow_id   text COLLATE "C" NOT NULL,
        definition_id bigint NOT NULL,
        group_id      smallint NOT NULL,
        kind          text COLLATE "C" NOT NULL CHECK (kind IN ('every', 'cron', 'after', 'on')),
        since         timestamptz NOT NULL,
        next_fire_at  timestamptz,
        last_fire_at  timestamptz,
        last_run_id   uuid,
        claimed       text[],
        consumed      text[] NOT NULL DEFAULT '{}',
        UNIQUE (namespace_id, workflow_id)
    ) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05)
    """,
    "CREATE INDEX schedule_due ON schedule (group_id, next_fire_at) WHERE next_fire_at IS NOT NULL",
    # Those that wait for the end of a run.
    "CREATE INDEX schedule_after ON schedule (group_id, last_run_id) WHERE kind = 'after' AND next_fire_at IS NULL",
)


def upgrade() -> None:
    """Create the columns, the table and its indexes; older builds do not know them and are not disturbed."""
    for statement in STATEMENTS:
        op.execute(statement)
