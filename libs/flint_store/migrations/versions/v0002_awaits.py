"""Awaits: what runs wait for beside time, what came for them, and which run started which."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    # kind: flint.journal.v1.AwaitOpened.Kind. served: an agent has done what opening (closed = false) or closing asks
    # for; a closed row that was served is deleted, so it is never seen as closed and served.
    """
    CREATE TABLE run_await (
        run_id       uuid NOT NULL,
        key          text COLLATE "C" NOT NULL,
        kind         smallint NOT NULL CHECK (kind BETWEEN 1 AND 3),
        group_id     smallint NOT NULL,
        namespace_id text COLLATE "C" NOT NULL,
        step         text NOT NULL,
        iteration    text NOT NULL,
        request      bytea NOT NULL,
        opened_at    timestamptz NOT NULL,
        closed       boolean NOT NULL DEFAULT false,
        served       boolean NOT NULL DEFAULT false,
        PRIMARY KEY (run_id, key)
    ) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05)
    """,
    "CREATE INDEX run_await_unserved ON run_await (group_id, run_id) WHERE NOT served",
    # A message for an await names it; seq is the order of arrival.
    'ALTER TABLE inbox ADD COLUMN await_key text COLLATE "C", ADD COLUMN seq bigserial',
    "CREATE INDEX inbox_mail ON inbox (run_id, seq) WHERE await_key IS NOT NULL",
    # Which runs have something in their inbox, however much it is.
    "CREATE INDEX inbox_runs ON inbox (group_id, run_id)",
    "DROP INDEX inbox_group",
    # parent_key: the await that the run's end answers; NULL where nobody waits for it. depth: runs above it.
    """
    ALTER TABLE run ADD COLUMN parent_run_id uuid, ADD COLUMN parent_key text COLLATE "C",
        ADD COLUMN depth smallint NOT NULL DEFAULT 0
    """,
    "CREATE INDEX run_children ON run (parent_run_id) WHERE parent_run_id IS NOT NULL",
)


def upgrade() -> None:
    """Create the table, the columns and their indexes."""
    for statement in STATEMENTS:
        op.execute(statement)
