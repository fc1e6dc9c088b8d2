"""The registry of custom functions."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = (
    # One row per version that ever connected; schemas are the JSON texts of the last registration, empty for any value.
    """
    CREATE TABLE function (
        namespace_id         text COLLATE "C" NOT NULL REFERENCES namespace,
        name                 text COLLATE "C" NOT NULL,
        version              text COLLATE "C" NOT NULL,
        version_sort         text COLLATE "C" NOT NULL,
        description          text NOT NULL DEFAULT '',
        input_schema         bytea NOT NULL DEFAULT '',
        output_schema        bytea NOT NULL DEFAULT '',
        created_at           timestamptz NOT NULL DEFAULT now(),
        seen_at              timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (namespace_id, name, version)
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX function_order ON function (namespace_id, name, version_sort DESC, version DESC)",
)


def upgrade() -> None:
    """Create the table; older builds do not know it and are not disturbed."""
    for statement in TABLES:
        op.execute(statement)
