"""How runs queue: pools, deadlines, windows, fairness."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    # hints: flint_core.queueing.QueueHints as JSON. placement: where the next leg of a run that moved is executed
    # (flint_core.queueing.Placement as JSON). NULL for nearly all runs, which costs no space.
    "ALTER TABLE run ADD COLUMN hints bytea, ADD COLUMN placement bytea",
    # queue: what a definition says of how its runs queue (JSON), so that a start need not load the program.
    "ALTER TABLE workflow_version ADD COLUMN queue bytea",
    # settings: flint.namespaces.v1.NamespaceSettings. tokens, tokens_at: the bucket of starts per second.
    """
    CREATE TABLE namespace_settings (
        namespace_id text COLLATE "C" PRIMARY KEY,
        settings     bytea NOT NULL,
        change       bigint NOT NULL DEFAULT 1,
        tokens       double precision,
        tokens_at    timestamptz,
        updated_at   timestamptz NOT NULL DEFAULT now()
    ) WITH (fillfactor = 50)
    """,
    # How many of `wanted` starts a namespace may make now. Whoever asks waits for whoever asked before until that one
    # has committed, so the counts are exact. Volatile: what the one before has committed is seen, which the statement
    # that calls it could not see by itself. NULL limits are none.
    """
    CREATE FUNCTION admit_starts(namespace text, wanted bigint, most_queued bigint, rate double precision,
                                 burst double precision, OUT admitted bigint, OUT by_queue bigint, OUT by_rate bigint)
    LANGUAGE plpgsql VOLATILE AS $$
    DECLARE
        held namespace_settings%ROWTYPE;
        filled double precision;
    BEGIN
        SELECT * INTO held FROM namespace_settings s WHERE s.namespace_id = namespace FOR UPDATE;
        by_queue := wanted;
        by_rate := wanted;
        IF held.namespace_id IS NOT NULL THEN
            IF most_queued IS NOT NULL THEN
                by_queue := greatest(0, least(wanted, most_queued - (
                    SELECT count(*) FROM (
                        SELECT 1 FROM run r
                        WHERE r.namespace_id = namespace AND r.state = 1 AND r.state IN (1, 2, 3)
                        LIMIT most_queued) queued)));
            END IF;
            IF rate IS NOT NULL THEN
                filled := least(burst, coalesce(
                    held.tokens + rate * extract(epoch FROM clock_timestamp() - held.tokens_at), burst));
                by_rate := greatest(0, least(wanted, floor(filled)::bigint));
            END IF;
        END IF;
        admitted := least(by_queue, by_rate);
        IF held.namespace_id IS NOT NULL AND rate IS NOT NULL THEN
            UPDATE namespace_settings s SET tokens = filled - admitted, tokens_at = clock_timestamp()
            WHERE s.namespace_id = namespace;
        END IF;
    END $$
    """,
)


def upgrade() -> None:
    """Create what it needs."""
    for statement in STATEMENTS:
        op.execute(statement)
