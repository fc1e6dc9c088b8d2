"""The spine: cluster, definitions, keys, ownership, runs, their record, inbox, fleet history.

Ids are compared bytewise (`COLLATE "C"`): order is the same on every server and in Python, and comparing is cheap.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    # One row. shard_groups never changes; oldest_code: the oldest revision whose build still works on this schema.
    """
    CREATE TABLE cluster (
        id                 integer PRIMARY KEY CHECK (id = 1),
        shard_groups       integer NOT NULL CHECK (shard_groups BETWEEN 1 AND 1024),
        journal_generation bigint NOT NULL DEFAULT 0,
        oldest_code        integer NOT NULL DEFAULT 1,
        created_at         timestamptz NOT NULL DEFAULT now()
    )
    """,
    # definition_epoch grows with every applied or deleted version: what makes caches of definitions exact.
    """
    CREATE TABLE namespace (
        namespace_id     text COLLATE "C" PRIMARY KEY,
        definition_epoch bigint NOT NULL DEFAULT 0,
        created_at       timestamptz NOT NULL DEFAULT now()
    ) WITH (fillfactor = 50)
    """,
    # Immutable but for deleted_at; rows of deleted versions stay, because finished runs name them.
    """
    CREATE TABLE workflow_version (
        definition_id   bigserial PRIMARY KEY,
        namespace_id    text COLLATE "C" NOT NULL REFERENCES namespace,
        workflow_id     text COLLATE "C" NOT NULL,
        version         text COLLATE "C" NOT NULL,
        version_sort    text COLLATE "C" NOT NULL,
        title           text NOT NULL DEFAULT '',
        summary         text NOT NULL DEFAULT '',
        source          text NOT NULL,
        program         bytea NOT NULL,
        definition_hash bytea NOT NULL CHECK (length(definition_hash) = 32),
        created_at      timestamptz NOT NULL DEFAULT now(),
        deleted_at      timestamptz
    )
    """,
    """
    CREATE UNIQUE INDEX workflow_version_name ON workflow_version (namespace_id, workflow_id, version)
        WHERE deleted_at IS NULL
    """,
    """
    CREATE INDEX workflow_version_latest
        ON workflow_version (namespace_id, workflow_id, version_sort DESC, version DESC)
    """,
    "CREATE INDEX workflow_version_hash ON workflow_version (definition_hash)",
    # namespace_id '-' means all namespaces. role: flint.identity.v1.Role.
    """
    CREATE TABLE api_key (
        key_id       text COLLATE "C" PRIMARY KEY,
        namespace_id text COLLATE "C" NOT NULL,
        secret_hash  bytea NOT NULL CHECK (length(secret_hash) = 32),
        display_name text NOT NULL DEFAULT '',
        role         smallint NOT NULL CHECK (role BETWEEN 1 AND 4),
        created_at   timestamptz NOT NULL DEFAULT now(),
        expires_at   timestamptz,
        revoked_at   timestamptz
    )
    """,
    "CREATE INDEX api_key_namespace ON api_key (namespace_id, created_at DESC, key_id DESC)",
    """
    CREATE TABLE owner_session (
        session_id   uuid PRIMARY KEY,
        nonce        uuid NOT NULL,
        scheduler_id text COLLATE "C" NOT NULL,
        address      text NOT NULL DEFAULT '',
        started_at   timestamptz NOT NULL DEFAULT now(),
        ended_at     timestamptz
    )
    """,
    """
    CREATE TABLE shard_group (
        group_id             integer PRIMARY KEY,
        term                 bigint NOT NULL DEFAULT 0,
        nonce                uuid,
        session_id           uuid,
        watermark            bigint NOT NULL DEFAULT 0,
        watermark_generation bigint NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50)
    """,
    # state: flint.runs.v1.Run.State; error: flint.runs.v1.Problem; snapshot: flint_core's encoding.
    # No foreign keys: definitions are never removed, and a start should lock no row that others need.
    """
    CREATE TABLE run (
        run_id            uuid PRIMARY KEY,
        namespace_id      text COLLATE "C" NOT NULL,
        definition_id     bigint NOT NULL,
        group_id          smallint NOT NULL,
        state             smallint NOT NULL CHECK (state BETWEEN 1 AND 6),
        level             smallint NOT NULL CHECK (level BETWEEN 0 AND 9),
        request_id        text COLLATE "C",
        request_hash      bytea,
        trace_id          bytea,
        input             bytea NOT NULL,
        output            bytea,
        error             bytea,
        change            bigint NOT NULL DEFAULT 1,
        position          bigint NOT NULL DEFAULT 0,
        snapshot          bytea,
        snapshot_position bigint NOT NULL DEFAULT 0,
        leg               integer NOT NULL DEFAULT 0,
        leg_nonce         uuid,
        claimant          text COLLATE "C",
        leg_generation    bigint,
        losses            integer NOT NULL DEFAULT 0,
        cancel_requested  boolean NOT NULL DEFAULT false,
        adopt             boolean NOT NULL DEFAULT false,
        created_at        timestamptz NOT NULL DEFAULT now(),
        started_at        timestamptz,
        ended_at          timestamptz,
        wake_at           timestamptz
    ) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.1)
    """,
    # Idempotent starts.
    "CREATE UNIQUE INDEX run_request ON run (namespace_id, request_id) WHERE request_id IS NOT NULL",
    # What an owner rebuilds its queue from.
    "CREATE INDEX run_active ON run (group_id) WHERE state IN (1, 2)",
    # Due timers.
    "CREATE INDEX run_wake ON run (group_id, wake_at) WHERE wake_at IS NOT NULL",
    # Starts accepted by a replica that did not own the group: swept by the owner.
    "CREATE INDEX run_adopt ON run (group_id) WHERE adopt",
    # Lists: all of a namespace; of one workflow; what ended badly (rare, so nearly free); what has not ended.
    "CREATE INDEX run_namespace ON run (namespace_id, run_id)",
    "CREATE INDEX run_definition ON run (definition_id, run_id)",
    "CREATE INDEX run_unsuccessful ON run (namespace_id, run_id) WHERE state IN (5, 6)",
    "CREATE INDEX run_unfinished ON run (namespace_id, run_id) WHERE state IN (1, 2, 3)",
    # steps: a flint.journal.v1.JournalEntry with only steps and end set; events: flint_core's encoding.
    # end_kind: 0 the leg went on, 1 succeeded, 2 failed, 3 cancelled, 4 blocked, 5 yielded.
    """
    CREATE TABLE run_entry (
        run_id      uuid NOT NULL,
        index       bigint NOT NULL,
        leg         integer NOT NULL,
        claimant    text COLLATE "C" NOT NULL,
        steps       bytea NOT NULL,
        events      bytea NOT NULL,
        end_kind    smallint NOT NULL DEFAULT 0 CHECK (end_kind BETWEEN 0 AND 5),
        recorded_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (run_id, index)
    )
    """,
    # What others want from a run; only the run's owner consumes it.
    """
    CREATE TABLE inbox (
        run_id     uuid NOT NULL,
        key        text COLLATE "C" NOT NULL,
        group_id   smallint NOT NULL,
        kind       text COLLATE "C" NOT NULL,
        payload    bytea NOT NULL DEFAULT '',
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (run_id, key)
    ) WITH (autovacuum_vacuum_scale_factor = 0.05)
    """,
    "CREATE INDEX inbox_group ON inbox (group_id)",
    # The fleet's history, one row per incarnation. state: flint.fleet.v1.Worker.State.
    """
    CREATE TABLE worker (
        incarnation   text COLLATE "C" PRIMARY KEY,
        worker_id     text COLLATE "C" NOT NULL,
        pool          text COLLATE "C" NOT NULL,
        region        text COLLATE "C" NOT NULL,
        card          bytea NOT NULL,
        state         smallint NOT NULL,
        registered_at timestamptz NOT NULL,
        ended_at      timestamptz
    )
    """,
    "CREATE INDEX worker_ended ON worker (ended_at)",
)


def upgrade() -> None:
    """Create everything, with the number of shard groups that the settings name."""
    for statement in TABLES:
        op.execute(statement)
    config = op.get_context().config
    if config is None:
        raise RuntimeError("migrations run through flint_store.migrate")
    groups = int(config.attributes["shard_groups"])
    connection = op.get_bind()
    connection.execute(text("INSERT INTO cluster (id, shard_groups) VALUES (1, :groups)"), {"groups": groups})
    connection.execute(
        text("INSERT INTO shard_group (group_id) SELECT generate_series(0, :last)"),
        {"last": groups - 1},
    )
    connection.execute(text("INSERT INTO namespace (namespace_id) VALUES ('default')"))
