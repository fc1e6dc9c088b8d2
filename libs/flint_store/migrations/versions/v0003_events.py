"""Events: what was published, and which runs listen for what. Approvals: what people are asked, and what they said."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENTS = (
    # opened_at is a worker's clock; this one is PostgreSQL's.
    "ALTER TABLE run_await ADD COLUMN recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()",
    # identity: a hash of source and id. matched: the inboxes of the runs that listen have it. xact: readers who follow
    # the order (xact, seq) only up to transactions that have all ended miss none that commits late.
    """
    CREATE TABLE event (
        seq          bigserial PRIMARY KEY,
        xact         xid8 NOT NULL DEFAULT pg_current_xact_id(),
        namespace_id text COLLATE "C" NOT NULL,
        identity     bytea NOT NULL CHECK (length(identity) = 16),
        type         text COLLATE "C" NOT NULL,
        content      bytea NOT NULL,
        received_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
        matched      boolean NOT NULL DEFAULT false
    ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.1)
    """,
    "CREATE UNIQUE INDEX event_identity ON event (namespace_id, identity)",
    "CREATE INDEX event_order ON event (namespace_id, xact, seq)",
    "CREATE INDEX event_received ON event (namespace_id, received_at)",
    "CREATE INDEX event_unmatched ON event (seq) WHERE NOT matched",
    # A shape is what many subscriptions have in common: which attributes and which expressions are compared (spec).
    # type: the exact type that they ask for, or '' for any.
    """
    CREATE TABLE event_shape (
        namespace_id text COLLATE "C" NOT NULL,
        type         text COLLATE "C" NOT NULL,
        shape        bytea NOT NULL CHECK (length(shape) = 16),
        spec         bytea NOT NULL,
        used_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (namespace_id, type, shape)
    )
    """,
    # match: a hash of the values that the shape's parts are to have.
    """
    CREATE TABLE event_subscription (
        run_id       uuid NOT NULL,
        await_key    text COLLATE "C" NOT NULL,
        number       integer NOT NULL,
        namespace_id text COLLATE "C" NOT NULL,
        shape        bytea NOT NULL,
        match        bytea NOT NULL,
        PRIMARY KEY (run_id, await_key, number)
    ) WITH (autovacuum_vacuum_scale_factor = 0.05)
    """,
    "CREATE INDEX event_subscription_match ON event_subscription (namespace_id, shape, match, run_id, await_key)",
    # state: flint.approvals.v1.Approval.State. Rows are history: they stay.
    """
    CREATE TABLE approval (
        number        bigserial PRIMARY KEY,
        run_id        uuid NOT NULL,
        key           text COLLATE "C" NOT NULL,
        namespace_id  text COLLATE "C" NOT NULL,
        workflow_id   text COLLATE "C" NOT NULL,
        version       text COLLATE "C" NOT NULL,
        step          text NOT NULL,
        iteration     text NOT NULL,
        state         smallint NOT NULL DEFAULT 1 CHECK (state BETWEEN 1 AND 4),
        title         text NOT NULL DEFAULT '',
        description   text NOT NULL DEFAULT '',
        assignees     text[] NOT NULL DEFAULT '{}',
        form          bytea,
        created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
        deadline_at   timestamptz,
        escalate_at   timestamptz,
        escalate_to   text[] NOT NULL DEFAULT '{}',
        escalated_at  timestamptz,
        ended_at      timestamptz,
        decided_by    text NOT NULL DEFAULT '',
        decided_key   text NOT NULL DEFAULT '',
        comment       text NOT NULL DEFAULT '',
        fields        bytea,
        UNIQUE (run_id, key)
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX approval_namespace ON approval (namespace_id, number)",
    "CREATE INDEX approval_open ON approval (namespace_id, number) WHERE state = 1",
    "CREATE INDEX approval_workflow ON approval (namespace_id, workflow_id, number)",
    "CREATE INDEX approval_assignees ON approval USING gin (assignees) WHERE state = 1",
    "CREATE INDEX approval_escalation ON approval (escalate_at) WHERE state = 1 AND escalated_at IS NULL",
)


def upgrade() -> None:
    """Create the tables and their indexes."""
    for statement in STATEMENTS:
        op.execute(statement)
