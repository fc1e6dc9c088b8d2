"""The elastic fleet: decisions and what they were made from."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = ()


def upgrade() -> None:
    """Create what it needs."""
    for statement in STATEMENTS:
        op.execute(statement)
