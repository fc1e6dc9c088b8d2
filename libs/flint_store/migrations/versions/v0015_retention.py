"""Retention: what is deleted, and when."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = ()


def upgrade() -> None:
    """Create what it needs."""
    for statement in STATEMENTS:
        op.execute(statement)
