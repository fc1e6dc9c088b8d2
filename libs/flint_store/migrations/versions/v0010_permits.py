"""Permits: concurrency keys and rate limits."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = ()


def upgrade() -> None:
    """Create what it needs."""
    for statement in STATEMENTS:
        op.execute(statement)
