-- Roles for a PostgreSQL server that several machines or people share. Run by the owner of the
-- database, who may create roles (python -m storage.roles, or any client); again, it renews what a
-- role may do. The database is densitune's alone: Optuna keeps its tables in the schema public.
--
-- densitune_reader    sees everything, changes nothing: status, list, report, export, dashboard
-- densitune_worker    trains: claims jobs, adds measurements, enters itself
-- densitune_proposer  launches: is a worker, and writes studies, trials, jobs and Optuna's tables
--
-- None owns a table or may change one. No role changes or removes measurements or failures, but
-- with the whole study, which a proposer may delete.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['densitune_reader', 'densitune_worker', 'densitune_proposer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
        EXECUTE format('GRANT USAGE ON SCHEMA densitune TO %I', name);
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA densitune FROM %I', name);
    END LOOP;
    -- What a proposer owns (Optuna's tables, if it launched first) is granted further below.
    IF NOT pg_has_role(current_user, 'densitune_proposer', 'USAGE') THEN
        EXECUTE format('GRANT densitune_proposer TO %I', current_user);
    END IF;
END $$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- A job's densities, seed, budget and bars stay as they were proposed. What may be written into the
-- other columns is the matter of checks and triggers (migration 0007), which enter failures, too.
GRANT SELECT ON
    densitune.studies, densitune.trials, densitune.jobs, densitune.workers, densitune.failures,
    densitune.alembic_version
    TO densitune_worker;
GRANT UPDATE (
    state, worker_id, epoch, losses, lease_until, kind, error, started_at, finished_at
) ON densitune.jobs TO densitune_worker;
GRANT INSERT (study_id, host, pid, device, versions), UPDATE (seen_at, stopped_at)
    ON densitune.workers TO densitune_worker;
GRANT INSERT (job_id, rung, value, extra, seconds, worker_id)
    ON densitune.measurements TO densitune_worker;

GRANT densitune_worker TO densitune_proposer;
GRANT SELECT ON ALL TABLES IN SCHEMA densitune TO densitune_proposer;
GRANT INSERT, UPDATE, DELETE ON densitune.studies TO densitune_proposer;
GRANT INSERT, UPDATE ON densitune.trials TO densitune_proposer;
GRANT INSERT ON densitune.jobs TO densitune_proposer;
GRANT USAGE, CREATE ON SCHEMA public TO densitune_proposer;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO densitune_proposer;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO densitune_proposer;

GRANT SELECT ON ALL TABLES IN SCHEMA densitune, public TO densitune_reader;

-- Optuna makes its tables when the first study is launched, by whichever of the two.
ALTER DEFAULT PRIVILEGES FOR ROLE densitune_proposer IN SCHEMA public
    GRANT SELECT ON TABLES TO densitune_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO densitune_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO densitune_proposer;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO densitune_proposer;
