"""The elastic fleet: decisions and what they were made from."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    # What an operator set for a pool, over the configuration: JSON, members of fleet.defaults. learned: what the leader
    # has learned of it and would miss after a restart (arrivals by time of day), JSON; NULL: nothing yet.
    """
    CREATE TABLE pool (
        region     text COLLATE "C" NOT NULL,
        pool       text COLLATE "C" NOT NULL,
        settings   bytea NOT NULL DEFAULT '{}',
        learned    bytea,
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (region, pool)
    ) WITH (fillfactor = 50)
    """,
    # The autoscaler's ledger. action: flint.fleet.v1.ScalingDecision.Action; verdict: .Verdict, 0 before it was judged;
    # inputs, evaluation: JSON. Deleted after fleet.decisions_kept_days.
    """
    CREATE TABLE scaling_decision (
        decision_id bigserial PRIMARY KEY,
        region      text COLLATE "C" NOT NULL,
        pool        text COLLATE "C" NOT NULL,
        decided_at  timestamptz NOT NULL,
        action      smallint NOT NULL CHECK (action BETWEEN 1 AND 3),
        workers     integer NOT NULL,
        wanted      integer NOT NULL,
        shadow      boolean NOT NULL,
        reason      text NOT NULL,
        inputs      bytea NOT NULL,
        failure     text NOT NULL DEFAULT '',
        verdict     smallint NOT NULL DEFAULT 0 CHECK (verdict BETWEEN 0 AND 4),
        evaluation  bytea
    )
    """,
    "CREATE INDEX scaling_decision_pool ON scaling_decision (region, pool, decision_id)",
)


def upgrade() -> None:
    """Create what it needs."""
    for statement in STATEMENTS:
        op.execute(statement)
