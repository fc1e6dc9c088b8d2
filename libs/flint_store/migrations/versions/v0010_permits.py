"""Permits: concurrency keys and rate limits."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    # One permit of one run. kind 1: a place under a concurrency key, 2: a token of a rate. It is taken by the commit
    # that opens the run's leg, and goes with the commit that ends the run; unless the leg's worker may still be at work
    # then: claimant and leg_nonce name it, and the permit stays until that leg is surely over.
    """
    CREATE TABLE permit (
        namespace_id text COLLATE "C" NOT NULL,
        kind         smallint NOT NULL,
        key          text COLLATE "C" NOT NULL,
        run_id       uuid NOT NULL,
        group_id     int NOT NULL,
        taken_at     timestamptz NOT NULL,
        claimant     text COLLATE "C",
        leg_nonce    uuid,
        PRIMARY KEY (namespace_id, kind, key, run_id)
    )
    """,
    "CREATE INDEX permit_run ON permit (run_id)",
    "CREATE INDEX permit_after ON permit (group_id) WHERE claimant IS NOT NULL",
    # A run at the front of its owner's queue that was refused, and what it waits for. Who asks later is not let past it
    # while asked_at is fresh. replaces: the holder that was told to go for it.
    """
    CREATE TABLE permit_wait (
        namespace_id text COLLATE "C" NOT NULL,
        kind         smallint NOT NULL,
        key          text COLLATE "C" NOT NULL,
        run_id       uuid NOT NULL,
        level        int NOT NULL,
        since_ms     bigint NOT NULL,
        asked_at     timestamptz NOT NULL,
        replaces     uuid,
        PRIMARY KEY (namespace_id, kind, key, run_id)
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX permit_wait_run ON permit_wait (run_id)",
    # The bucket of a rate: when it is full again. No row: it is full.
    """
    CREATE TABLE permit_bucket (
        namespace_id text COLLATE "C" NOT NULL,
        key          text COLLATE "C" NOT NULL,
        full_at      timestamptz NOT NULL,
        PRIMARY KEY (namespace_id, key)
    ) WITH (fillfactor = 50)
    """,
    # Limits that operators name and change. NULL: that kind of limit is none.
    """
    CREATE TABLE permit_limit (
        namespace_id   text COLLATE "C" NOT NULL,
        name           text COLLATE "C" NOT NULL,
        concurrency    bigint,
        rate_count     bigint,
        rate_period_ms bigint,
        rate_burst     bigint,
        updated_at     timestamptz NOT NULL,
        PRIMARY KEY (namespace_id, name)
    )
    """,
    # Permits for these runs, in the order in which they are named; demands name their run by its place in that order. A
    # run gets all that it needs or nothing. All keys are locked first, in one order, until the commit. Volatile: every
    # query sees what those who held the locks before have committed, which the calling statement could not see itself.
    # `held` makes the call depend on the caller's fence. What this writes are rows of these runs alone.
    """
    CREATE FUNCTION take_permits(
        held int, runs uuid[], namespaces text[], groups int[], levels int[], since bigint[],
        demand_of int[], kinds smallint[], keys text[], names text[], mosts bigint[], periods bigint[], bursts bigint[],
        overflows text[], patience_ms bigint)
    RETURNS TABLE (run_id uuid, granted boolean, taken_at timestamptz, kind smallint, key text, overflow text,
                   due_at timestamptz, replaced uuid, replaced_group int)
    LANGUAGE plpgsql VOLATILE AS $$
    #variable_conflict use_column
    DECLARE
        lock_id bigint;
        n int;
        lacks int;
        first int := 1;
        last int;
        at timestamptz;
        room boolean;
        lingers boolean;
        most bigint;
        ahead bigint;
        due timestamptz;
        takes boolean[];
        steps interval[];
        depths bigint[];
        fulls timestamptz[];
        named permit_limit%ROWTYPE;
    BEGIN
        FOR lock_id IN
            SELECT DISTINCT hashtextextended(namespaces[u.run] || chr(31) || u.kind || chr(31) || u.key, 7106) AS id
            FROM unnest(demand_of, kinds, keys) AS u(run, kind, key) ORDER BY id
        LOOP
            PERFORM pg_advisory_xact_lock(lock_id);
        END LOOP;
        FOR n IN 1 .. cardinality(runs) LOOP
            last := first - 1;
            WHILE last < cardinality(demand_of) AND demand_of[last + 1] = n LOOP
                last := last + 1;
            END LOOP;
            takes := '{}'; steps := '{}'; depths := '{}'; fulls := '{}';
            run_id := runs[n]; granted := true; taken_at := NULL;
            kind := NULL; key := NULL; overflow := NULL; due_at := NULL; replaced := NULL; replaced_group := NULL;
            -- Places come before tokens: the moment that is recorded is later than every count of holders.
            FOR d IN first .. last LOOP
                SELECT p.claimant IS NOT NULL INTO lingers FROM permit p
                WHERE p.namespace_id = namespaces[n] AND p.kind = kinds[d] AND p.key = keys[d] AND p.run_id = runs[n];
                takes[d] := lingers IS NULL;
                CONTINUE WHEN NOT lingers;  -- it holds this one
                -- A permit that outlived an earlier end of the run is not its own again before that leg is over.
                most := CASE WHEN lingers THEN 0 ELSE mosts[d] END;
                steps[d] := periods[d] * interval '1 millisecond';
                depths[d] := bursts[d];
                IF names[d] <> '' AND lingers IS NULL THEN
                    SELECT * INTO named FROM permit_limit l WHERE l.namespace_id = namespaces[n] AND l.name = names[d];
                    -- A name that nobody has set lets nobody in.
                    most := CASE WHEN named.name IS NULL THEN 0
                                 WHEN kinds[d] = 1 THEN named.concurrency ELSE named.rate_count END;
                    steps[d] := named.rate_period_ms * interval '1 millisecond';
                    depths[d] := named.rate_burst;
                END IF;
                due := NULL;
                room := most IS NULL;
                IF most > 0 THEN
                    SELECT count(*) INTO ahead FROM permit_wait w
                    WHERE w.namespace_id = namespaces[n] AND w.kind = kinds[d] AND w.key = keys[d]
                        AND w.run_id <> runs[n] AND (w.level, w.since_ms, w.run_id) < (levels[n], since[n], runs[n])
                        AND w.asked_at > clock_timestamp() - patience_ms * interval '1 millisecond';
                    IF kinds[d] = 1 THEN
                        room := most > ahead + (
                            SELECT count(*) FROM (
                                SELECT 1 FROM permit p
                                WHERE p.namespace_id = namespaces[n] AND p.kind = 1 AND p.key = keys[d]
                                LIMIT most) holders);
                    ELSE
                        -- Rounded up to the clock's microseconds: never more than the rate allows.
                        steps[d] := ceil(extract(epoch FROM steps[d]) * 1000000 / most) * interval '1 microsecond';
                        at := clock_timestamp();
                        -- A clock that went back leaves the bucket empty, but no emptier than that.
                        fulls[d] := (
                            SELECT least(b.full_at, at + steps[d] * depths[d]) FROM permit_bucket b
                            WHERE b.namespace_id = namespaces[n] AND b.key = keys[d]);
                        due := greatest(fulls[d], at) + steps[d] * (ahead + 1 - depths[d]);
                        room := due <= at;
                    END IF;
                END IF;
                IF most IS NULL THEN
                    takes[d] := kinds[d] = 1;  -- it holds a place, also while the limit is none
                ELSIF NOT room THEN
                    lacks := d;
                    granted := false; kind := kinds[d]; key := keys[d]; overflow := overflows[d]; due_at := due;
                    EXIT;
                END IF;
            END LOOP;
            IF granted THEN
                at := clock_timestamp();
                taken_at := at;
                FOR d IN first .. last LOOP
                    CONTINUE WHEN NOT takes[d];
                    INSERT INTO permit (namespace_id, kind, key, run_id, group_id, taken_at)
                    VALUES (namespaces[n], kinds[d], keys[d], runs[n], groups[n], at);
                    IF kinds[d] = 2 THEN
                        INSERT INTO permit_bucket (namespace_id, key, full_at)
                        VALUES (namespaces[n], keys[d], greatest(fulls[d], at) + steps[d])
                        ON CONFLICT ON CONSTRAINT permit_bucket_pkey DO UPDATE SET full_at = excluded.full_at;
                    END IF;
                END LOOP;
                DELETE FROM permit_wait w WHERE w.run_id = runs[n];
            ELSIF overflow <> 'refuse' THEN
                DELETE FROM permit_wait w WHERE w.run_id = runs[n] AND (w.kind, w.key) <> (kinds[lacks], keys[lacks]);
                IF overflow = 'replace' AND NOT EXISTS (
                    SELECT 1 FROM permit_wait w WHERE w.run_id = runs[n] AND w.replaces IS NOT NULL) THEN
                    SELECT p.run_id, p.group_id INTO replaced, replaced_group FROM permit p
                    WHERE p.namespace_id = namespaces[n] AND p.kind = kinds[lacks] AND p.key = keys[lacks]
                        AND p.claimant IS NULL AND NOT EXISTS (
                            SELECT 1 FROM permit_wait w
                            WHERE w.namespace_id = p.namespace_id AND w.kind = p.kind AND w.key = p.key
                                AND w.replaces = p.run_id)
                    ORDER BY p.taken_at LIMIT 1;
                    INSERT INTO inbox (run_id, key, group_id, kind, payload, created_at)
                    SELECT replaced, 'cancel', replaced_group, 'cancel',
                           convert_to('replaced by run ' || runs[n], 'UTF8'), clock_timestamp()
                    WHERE replaced IS NOT NULL
                    ON CONFLICT ON CONSTRAINT inbox_pkey DO NOTHING;
                END IF;
                INSERT INTO permit_wait AS w (namespace_id, kind, key, run_id, level, since_ms, asked_at, replaces)
                VALUES (namespaces[n], kinds[lacks], keys[lacks], runs[n], levels[n], since[n], clock_timestamp(),
                        replaced)
                ON CONFLICT ON CONSTRAINT permit_wait_pkey DO UPDATE
                SET level = excluded.level, asked_at = excluded.asked_at,
                    replaces = coalesce(w.replaces, excluded.replaces);
            END IF;
            RETURN NEXT;
            first := last + 1;
        END LOOP;
    END $$
    """,
)


def upgrade() -> None:
    """Create what it needs."""
    for statement in STATEMENTS:
        op.execute(statement)
