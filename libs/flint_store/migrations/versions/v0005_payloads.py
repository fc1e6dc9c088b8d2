"""Large values by reference, and cached results."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = (
    # Complete payloads. touched_at: when somebody last stored the same again; what no run names is dropped later.
    """
    CREATE TABLE payload (
        namespace_id text COLLATE "C" NOT NULL,
        sha256       bytea NOT NULL CHECK (length(sha256) = 32),
        bytes        bigint NOT NULL,
        chunks       integer NOT NULL,
        location     text NOT NULL CHECK (location IN ('postgres', 's3')),
        touched_at   timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (namespace_id, sha256)
    )
    """,
    "CREATE INDEX payload_touched ON payload (touched_at)",
    # Of complete ones and of those on their way. Read once: compressing them is not worth the time.
    """
    CREATE TABLE payload_chunk (
        namespace_id text COLLATE "C" NOT NULL,
        sha256       bytea NOT NULL,
        index        integer NOT NULL,
        data         bytea NOT NULL,
        created_at   timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (namespace_id, sha256, index)
    )
    """,
    "ALTER TABLE payload_chunk ALTER COLUMN data SET STORAGE EXTERNAL",
    "CREATE INDEX payload_chunk_created ON payload_chunk (created_at)",
    """
    CREATE TABLE payload_use (
        run_id       uuid NOT NULL,
        namespace_id text COLLATE "C" NOT NULL,
        sha256       bytea NOT NULL,
        PRIMARY KEY (run_id, namespace_id, sha256)
    )
    """,
    "CREATE INDEX payload_use_payload ON payload_use (namespace_id, sha256)",
    """
    CREATE TABLE result_cache (
        namespace_id text COLLATE "C" NOT NULL,
        cache_key    bytea NOT NULL CHECK (length(cache_key) = 32),
        output       bytea NOT NULL,
        expires_at   timestamptz NOT NULL,
        PRIMARY KEY (namespace_id, cache_key)
    )
    """,
    "CREATE INDEX result_cache_expires ON result_cache (expires_at)",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in TABLES:
        op.execute(statement)
