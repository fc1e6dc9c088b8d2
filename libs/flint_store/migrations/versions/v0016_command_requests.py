"""Requests of commands for runs: what was asked for once is not done twice. Pauses of schedules by events."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    # digest: SHA-256 of what was asked for. kept: for a reset, the entries that stay valid. A row is written by the
    # commit that stores the command, and stays for a while after it was carried out.
    """
    CREATE TABLE command_request (
        run_id     uuid NOT NULL,
        request_id text COLLATE "C" NOT NULL,
        digest     bytea NOT NULL,
        kept       bigint NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (run_id, request_id)
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX command_request_old ON command_request (created_at)",
    # Events with numbers above paused_seq, up to resumed_seq (while it is paused: without end), start nothing.
    "ALTER TABLE schedule ADD COLUMN paused_seq bigint, ADD COLUMN resumed_seq bigint",
)


def upgrade() -> None:
    """Create what it needs; older builds do not know it and are not disturbed."""
    for statement in STATEMENTS:
        op.execute(statement)
