"""Run control: pauses, resets, batch jobs, escalation."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    # State 7: paused. The wider check holds for every row that is there.
    "ALTER TABLE run DROP CONSTRAINT run_state_check",
    "ALTER TABLE run ADD CONSTRAINT run_state_check CHECK (state BETWEEN 1 AND 7) NOT VALID",
    "DROP INDEX run_unfinished",
    "CREATE INDEX run_unfinished ON run (namespace_id, run_id) WHERE state IN (1, 2, 3, 7)",
    # reset: how often the run was taken back; NULL: never. reset_position: its position then; while its snapshot is not
    # newer than that, a leg has to rebuild the state from the input and the entries that are not superseded.
    "ALTER TABLE run ADD COLUMN reset integer, ADD COLUMN reset_position bigint, ADD COLUMN reset_at timestamptz",
    # The reset that cut the entry off.
    "ALTER TABLE run_entry ADD COLUMN superseded integer",
    # await_key: the await that the signal was handed to and that has not said what it thinks of it. tried: the one that
    # had it and did not take it. looked: nobody needs to look whom it is for, until another await opens.
    """
    CREATE TABLE run_signal (
        run_id     uuid NOT NULL,
        signal_id  text COLLATE "C" NOT NULL,
        seq        bigserial NOT NULL,
        group_id   smallint NOT NULL,
        name       text COLLATE "C" NOT NULL,
        event      bytea NOT NULL,
        await_key  text COLLATE "C",
        looked     boolean NOT NULL DEFAULT false,
        taken_at   timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (run_id, signal_id)
    ) WITH (fillfactor = 70)
    """,
    "CREATE UNIQUE INDEX run_signal_seq ON run_signal (run_id, seq)",
    "CREATE INDEX run_signal_new ON run_signal (group_id, run_id) WHERE NOT looked",
    # Jobs over many runs. cursor: the run that was come to last; bound: runs above it are not the job's. state:
    # flint.runs.v1.Batch.State; action, filter: messages of flint.runs.v1; refusals: a Batch with these alone.
    """
    CREATE TABLE batch_job (
        batch_id     uuid PRIMARY KEY,
        namespace_id text COLLATE "C" NOT NULL,
        group_id     smallint NOT NULL,
        request_id   text COLLATE "C",
        action       bytea NOT NULL,
        filter       bytea NOT NULL,
        state        smallint NOT NULL DEFAULT 1 CHECK (state BETWEEN 1 AND 3),
        cursor       uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
        bound        uuid NOT NULL,
        matched      bigint NOT NULL DEFAULT 0,
        done         bigint NOT NULL DEFAULT 0,
        refused      bigint NOT NULL DEFAULT 0,
        refusals     bytea NOT NULL DEFAULT '',
        created_at   timestamptz NOT NULL DEFAULT now(),
        ended_at     timestamptz
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX batch_job_list ON batch_job (namespace_id, batch_id)",
    "CREATE UNIQUE INDEX batch_job_request ON batch_job (namespace_id, request_id) WHERE request_id IS NOT NULL",
    "CREATE INDEX batch_job_active ON batch_job (group_id) WHERE state = 1",
    # Workflows on hold, and what is to happen when their runs fail again and again (JSON). changed_at grows with every
    # change of any row: what schedulers look at to see that they must read again.
    """
    CREATE TABLE workflow_control (
        namespace_id text COLLATE "C" NOT NULL,
        workflow_id  text COLLATE "C" NOT NULL,
        held_at      timestamptz,
        reason       text NOT NULL DEFAULT '',
        escalation   bytea,
        changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (namespace_id, workflow_id)
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX workflow_control_changed ON workflow_control (changed_at)",
    # Failures of runs whose workflow has such a policy, written by the commit that ends the run.
    """
    CREATE TABLE workflow_failure (
        namespace_id text COLLATE "C" NOT NULL,
        workflow_id  text COLLATE "C" NOT NULL,
        run_id       uuid NOT NULL,
        change       bigint NOT NULL,
        failed_at    timestamptz NOT NULL,
        counted      boolean NOT NULL DEFAULT false,
        PRIMARY KEY (run_id, change)
    )
    """,
    "CREATE INDEX workflow_failure_new ON workflow_failure (failed_at) WHERE NOT counted",
    "CREATE INDEX workflow_failure_window ON workflow_failure (namespace_id, workflow_id, failed_at)",
    # One row an escalation. told: its event is published.
    """
    CREATE TABLE workflow_escalation (
        namespace_id text COLLATE "C" NOT NULL,
        workflow_id  text COLLATE "C" NOT NULL,
        escalated_at timestamptz NOT NULL,
        failures     integer NOT NULL,
        last_run_id  uuid NOT NULL,
        policy       bytea NOT NULL,
        told         boolean NOT NULL DEFAULT false,
        PRIMARY KEY (namespace_id, workflow_id, escalated_at)
    )
    """,
    "CREATE INDEX workflow_escalation_new ON workflow_escalation (escalated_at) WHERE NOT told",
)


def upgrade() -> None:
    """Create what it needs."""
    for statement in STATEMENTS:
        op.execute(statement)
