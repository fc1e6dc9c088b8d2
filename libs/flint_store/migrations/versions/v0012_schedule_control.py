"""Schedules that are steered: objects of their own, pauses, exclusions, backfills."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    # A schedule that is an object of its own has '@' and its name as workflow_id (no workflow has such an id, and
    # builds that do not know it leave it alone), definition_id 0, and what it starts and says in target … level.
    # calendars: names that its spec holds. nominal_at: the time that next_fire_at is for; NULL: the same moment.
    # held_at: a time that waits for the end of the last run. revision: grows with what people change.
    """
    ALTER TABLE schedule
        ADD COLUMN target text COLLATE "C",
        ADD COLUMN target_version text COLLATE "C",
        ADD COLUMN spec bytea,
        ADD COLUMN input bytea,
        ADD COLUMN level smallint CHECK (level BETWEEN 0 AND 9),
        ADD COLUMN description text,
        ADD COLUMN calendars text[] COLLATE "C" NOT NULL DEFAULT '{}',
        ADD COLUMN nominal_at timestamptz,
        ADD COLUMN held_at timestamptz,
        ADD COLUMN paused_at timestamptz,
        ADD COLUMN pause_note text,
        ADD COLUMN paused_by text,
        ADD COLUMN revision bigint NOT NULL DEFAULT 1,
        ADD COLUMN started bigint NOT NULL DEFAULT 0,
        ADD COLUMN skipped bigint NOT NULL DEFAULT 0,
        ADD COLUMN missed bigint NOT NULL DEFAULT 0,
        ADD COLUMN excluded bigint NOT NULL DEFAULT 0,
        ADD COLUMN refused bigint NOT NULL DEFAULT 0,
        ADD COLUMN last_error text
    """,
    "CREATE INDEX schedule_held ON schedule (group_id, last_run_id) WHERE held_at IS NOT NULL",
    """
    CREATE TABLE schedule_calendar (
        namespace_id text COLLATE "C" NOT NULL REFERENCES namespace,
        calendar_id  text COLLATE "C" NOT NULL,
        description  text NOT NULL,
        rules        bytea NOT NULL,
        updated_at   timestamptz NOT NULL,
        PRIMARY KEY (namespace_id, calendar_id)
    )
    """,
    # cursor_at: the first time that was not served; NULL: all were. running: runs of it that are not known to have
    # ended, at most `concurrency`. step: grows with each change, so that a repeated one changes nothing.
    """
    CREATE TABLE schedule_backfill (
        backfill_id  uuid PRIMARY KEY,
        schedule_id  uuid NOT NULL,
        namespace_id text COLLATE "C" NOT NULL,
        group_id     smallint NOT NULL,
        request_id   text COLLATE "C" NOT NULL,
        from_at      timestamptz NOT NULL,
        until_at     timestamptz NOT NULL,
        cursor_at    timestamptz,
        concurrency  int NOT NULL,
        total        bigint NOT NULL,
        started      bigint NOT NULL DEFAULT 0,
        present      bigint NOT NULL DEFAULT 0,
        succeeded    bigint NOT NULL DEFAULT 0,
        failed       bigint NOT NULL DEFAULT 0,
        running      uuid[] NOT NULL DEFAULT '{}',
        step         bigint NOT NULL DEFAULT 0,
        cancelled    boolean NOT NULL DEFAULT false,
        created_at   timestamptz NOT NULL,
        created_by   text NOT NULL,
        ended_at     timestamptz,
        UNIQUE (schedule_id, request_id)
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX schedule_backfill_open ON schedule_backfill (group_id, schedule_id) WHERE ended_at IS NULL",
    "CREATE INDEX schedule_backfill_latest ON schedule_backfill (schedule_id, created_at)",
)


def upgrade() -> None:
    """Create the columns and tables; older builds do not know them and are not disturbed."""
    for statement in STATEMENTS:
        op.execute(statement)
