"""Runs that have something to undo before they end; and to which tree of runs each one belongs."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

STATEMENTS = (
    # root_run_id: the run at the top of the tree; NULL for that one itself. Constant defaults cost no rewrite.
    "ALTER TABLE run ADD COLUMN compensates boolean NOT NULL DEFAULT false, ADD COLUMN root_run_id uuid",
    """
    WITH RECURSIVE tree AS (
        SELECT r.run_id, r.parent_run_id AS root FROM run r JOIN run p ON p.run_id = r.parent_run_id
        WHERE p.parent_run_id IS NULL
        UNION ALL
        SELECT r.run_id, t.root FROM run r JOIN tree t ON t.run_id = r.parent_run_id)
    UPDATE run r SET root_run_id = t.root FROM tree t WHERE r.run_id = t.run_id
    """,
    "CREATE INDEX run_tree ON run (root_run_id) WHERE root_run_id IS NOT NULL",
    # How many runs there are below this one, at most `most`; until the transaction ends, nobody else counts it.
    # Volatile: what the one before has committed is seen, which the statement that calls it could not see by itself.
    """
    CREATE FUNCTION count_tree(root uuid, most bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended(root::text, 7104));
        RETURN (SELECT count(*) FROM (SELECT 1 FROM run r WHERE r.root_run_id = root LIMIT most) few);
    END $$
    """,
)


def upgrade() -> None:
    """Add the columns, tell the trees of the runs that are there, and make the function."""
    for statement in STATEMENTS:
        op.execute(statement)
