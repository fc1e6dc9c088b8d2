"""Branches of wide forks as runs of their own."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = ()


def upgrade() -> None:
    """Create what it needs."""
    for statement in STATEMENTS:
        op.execute(statement)
