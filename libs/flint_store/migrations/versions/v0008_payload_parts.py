"""Large values that hold references to others."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STATEMENTS = (
    # What the JSON of a payload names is kept for as long as the payload itself.
    """
    CREATE TABLE payload_part (
        namespace_id text COLLATE "C" NOT NULL,
        sha256       bytea NOT NULL,
        part         bytea NOT NULL CHECK (length(part) = 32),
        PRIMARY KEY (namespace_id, sha256, part)
    )
    """,
    "CREATE INDEX payload_part_part ON payload_part (namespace_id, part)",
)


def upgrade() -> None:
    """Create the table."""
    for statement in STATEMENTS:
        op.execute(statement)
