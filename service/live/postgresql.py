"""How PostgreSQL records changes and tells of them: its SQL.

A trigger writes the transaction's number with each change. What is new for a follower is what its
last snapshot didn't see, and what the statement that looks for it does.
"""

from collections.abc import Sequence

import asyncpg

from service.live.watched import Watched

# A restored database has other numbers of transactions, or the same ones for other changes.
PLACE = """
(SELECT concat_ws('.', system_identifier, (
    SELECT oid FROM pg_database WHERE datname = current_database()
), 'changes'::regclass::oid) FROM pg_control_system())
"""
SNAPSHOT = "pg_current_snapshot()::text"
# Standbys don't know which transactions are open.
IS_STANDBY = "pg_is_in_recovery()"
ORDER = "xid"
# The first change that a snapshot doesn't see. `+ 0` keeps the planner from looking for it in the
# order of the numbers, among all that were seen.
FIRST = """
(SELECT min(seq + 0) FROM changes
WHERE resource = :resource AND (xid >= :end OR xid = ANY(CAST(:open AS bigint[]))))
"""
UNSEEN = """
(xid + 0 >= :end OR xid = ANY(CAST(:open AS bigint[])))
AND xid + 0 < :until_end AND NOT xid = ANY(CAST(:until_open AS bigint[]))
"""
TRIGGERS = """
(SELECT count(*) = 4 FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
WHERE tgrelid = to_regclass(quote_ident(:resource)) AND proname = 'live_' || :resource
    AND tgenabled IN ('O', 'A'))
"""

# The commit of this waits until all that was seen before is on the disk, and on the synchronous
# standby. Without it, a crash or a failover could take back what was told. It also could give the
# number of a transaction that was rolled back to another one, which a snapshot would have seen.
CONFIRM: str | None = "SELECT 1 AS done FROM pg_logical_emit_message(true, 'live', '')"

# Each try waits only for this time: who waits for a table holds up all who come later.
BEGIN: Sequence[str] = ("SET LOCAL lock_timeout = '200ms'",)
LOCKED: tuple[type[Exception], ...] = (asyncpg.LockNotAvailableError,)

SCHEMA = """
SELECT quote_ident(nspname) AS name FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = 'changes'::regclass
"""


def _json(alias: str, names: Sequence[str]) -> str:
    return "json_build_object({})::text".format(
        ", ".join(f"'{name}', {alias}.\"{name}\"" for name in names)
    )


def turn_off(table: str) -> list[str]:
    """The statements that remove the triggers of a table."""
    return [f'DROP FUNCTION IF EXISTS "live_{table}"() CASCADE']


def turn_on(watched: Watched, schema: str) -> list[str]:
    """The statements that make the triggers of a table, in the schema of `changes`.

    Whoever may write to the table need not have rights on the others.
    """
    table = watched.table
    name = f'"live_{table}"'
    both = ", ".join(f'{{0}}."{column}"' for column in watched.new)
    insert = (
        f"INSERT INTO {schema}.changes (xid, resource, row_id, old, new, size, at)"
        f" SELECT this_xid, '{table}', row_id, before, after, coalesce(length(after), 0), this_time"
    )
    function = f"""
CREATE FUNCTION {schema}.{name}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $live$
DECLARE
    this_xid bigint := pg_current_xact_id()::text::bigint;
    this_time bigint := extract(epoch FROM clock_timestamp()) * 1000000;
BEGIN
    IF TG_OP = 'INSERT' THEN
        {insert} FROM (
            SELECT n.id AS row_id, NULL AS before, {_json("n", watched.new)} AS after
            FROM new_rows n ORDER BY n.id
        ) AS found;
    ELSIF TG_OP = 'UPDATE' THEN
        {insert} FROM (
            SELECT coalesce(n.id, o.id) AS row_id,
                CASE WHEN o.id IS NOT NULL THEN {_json("o", watched.old)} END AS before,
                CASE WHEN n.id IS NOT NULL THEN {_json("n", watched.new)} END AS after
            FROM old_rows o FULL JOIN new_rows n ON o.id = n.id
            WHERE ({both.format("o")}) IS DISTINCT FROM ({both.format("n")})
            ORDER BY coalesce(n.id, o.id)
        ) AS found;
    ELSIF TG_OP = 'DELETE' THEN
        {insert} FROM (
            SELECT o.id AS row_id, {_json("o", watched.old)} AS before, NULL AS after
            FROM old_rows o ORDER BY o.id
        ) AS found;
    ELSE
        UPDATE {schema}.live
        SET swept = greatest(swept, 0), life = replace(gen_random_uuid()::text, '-', '')
        WHERE resource = '{table}';
    END IF;
    RETURN NULL;
END $live$
"""  # noqa: S608 - names of the code
    tables = {
        "insert": "REFERENCING NEW TABLE AS new_rows",
        "update": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
        "delete": "REFERENCING OLD TABLE AS old_rows",
        "truncate": "",
    }
    return [
        function,
        # Others could make a trigger of it on a table of their own.
        f"REVOKE ALL ON FUNCTION {schema}.{name}() FROM PUBLIC",
        *(
            f'CREATE TRIGGER live_{event} AFTER {event.upper()} ON "{table}" {rows}'
            f" FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{name}()"
            for event, rows in tables.items()
        ),
    ]
