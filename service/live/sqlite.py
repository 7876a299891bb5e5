"""How SQLite records changes and tells of them: its SQL.

It has one writer at a time, so the numbers of changes are in the order of the commits.
"""

from collections.abc import Sequence

from service.live.watched import Watched

PLACE = "'file'"
SNAPSHOT = "(SELECT '0:' || (coalesce(max(seq), 0) + 1) || ':' FROM changes)"
IS_STANDBY = "0"
ORDER = "seq"
FIRST = ":end"
UNSEEN = "seq < :until_end"
TRIGGERS = """
(SELECT count(*) = 3 FROM sqlite_master
WHERE type = 'trigger' AND tbl_name = :resource AND name LIKE 'live\\_%' ESCAPE '\\')
"""
CONFIRM: str | None = None
BEGIN: Sequence[str] = ()
# Another writer is waited for at the beginning.
LOCKED: tuple[type[Exception], ...] = ()

SCHEMA = "SELECT 'main' AS name"

_NOW = "CAST((julianday('now') - 2440587.5) * 86400000000 AS integer)"


def _json(alias: str, names: Sequence[str], texts: Sequence[str]) -> str:
    # Other programs may have stored any type, also those that JSON doesn't have.
    kinds = ["text" if name in texts else "integer" for name in names]
    return "json_object({})".format(
        ", ".join(
            f"'{name}', CAST({alias}.\"{name}\" AS {kind})"
            for name, kind in zip(names, kinds, strict=True)
        )
    )


def turn_off(table: str) -> list[str]:
    """The statements that remove the triggers of a table."""
    return [
        f'DROP TRIGGER IF EXISTS "live_{table}_{event}"' for event in ("insert", "update", "delete")
    ]


def turn_on(watched: Watched, schema: str) -> list[str]:
    """The statements that make the triggers of a table."""
    table = watched.table
    before, after = (
        _json("OLD", watched.old, watched.texts),
        _json("NEW", watched.new, watched.texts),
    )

    def insert(row_id: str, old: str, new: str, condition: str = "1") -> str:
        return (
            "INSERT INTO changes (xid, resource, row_id, old, new, size, at)"  # noqa: S608
            f" SELECT 0, '{table}', {row_id}, {old}, new, coalesce(length(new), 0), {_NOW}"
            f" FROM (SELECT {new} AS new) WHERE {condition};"
        )

    is_other = " OR ".join(f'OLD."{name}" IS NOT NEW."{name}"' for name in watched.new)
    is_same_row = f"CASE WHEN OLD.id = NEW.id THEN {before} END"
    bodies = {
        "insert": ("1", insert("NEW.id", "NULL", after)),
        "update": (
            is_other,
            insert("OLD.id", before, "NULL", "OLD.id <> NEW.id")
            + insert("NEW.id", is_same_row, after),
        ),
        "delete": ("1", insert("OLD.id", before, "NULL")),
    }
    return [
        f'CREATE TRIGGER "live_{table}_{event}" AFTER {event.upper()} ON "{table}"'
        f" FOR EACH ROW WHEN {condition} BEGIN {body} END"
        for event, (condition, body) in bodies.items()
    ]
