"""Branches of wide forks as runs of their own."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE run_await DROP CONSTRAINT run_await_kind_check, ADD CHECK (kind BETWEEN 1 AND 4)",
    # The runs whose ends answer one await: the branch runs of a fork among those that a run has started.
    "CREATE INDEX run_answers ON run (parent_run_id, parent_key) WHERE parent_key IS NOT NULL",
    # Branch runs are parts of a run, not further ones: they do not count among the runs of a tree.
    """
    CREATE OR REPLACE FUNCTION count_tree(root uuid, most bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended(root::text, 7104));
        RETURN (SELECT count(*) FROM (
            SELECT 1 FROM run r
            WHERE r.root_run_id = root AND NOT COALESCE(starts_with(r.request_id, '~branch/'), false) LIMIT most) few);
    END $$
    """,
)


def upgrade() -> None:
    """Create what it needs."""
    for statement in STATEMENTS:
        op.execute(statement)
