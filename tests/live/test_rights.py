"""A service whose role doesn't own the tables."""

import re
import secrets
import sys
from pathlib import Path

import httpx2

from tests.support.databases import ROOT, NewDatabase, execute, fetch, run
from tests.support.following import following, live
from tests.support.servers import running

OTHERS = """
GRANT SELECT ON alembic_version TO notes_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON notes, idempotency_keys TO notes_service;
GRANT USAGE ON SEQUENCE notes_id_seq TO notes_service;
"""


def test_the_rights_of_the_page_on_postgresql(new_database: NewDatabase, tmp_path: Path) -> None:
    """With the rights that docs/live.md names, a service follows and sweeps."""
    url, role = new_database("postgresql"), f"role_{secrets.token_hex(6)}"
    live(url)
    page = (ROOT / "docs/live.md").read_text()
    (rights,) = re.findall(r"^```sql\n(.*?)^```", page, re.M | re.S)
    grants = (OTHERS + rights).replace("notes_service", role).strip().splitlines()
    execute(url, f"CREATE ROLE {role}", *grants)
    limited = f"{url}{'&' if '?' in url else '?'}options=-c%20role%3D{role}"
    try:
        with running(limited, tmp_path / "log", LIVE="1") as service:
            for text in ("a", "b"):
                note = {"text": text, "completed": False}
                assert httpx2.post(f"{service}/notes/", json=note).status_code == 200
            with following(f"{service}/notes", after="0") as follower:
                assert [event.data["text"] for event in follower.take(2)] == ["a", "b"]
        execute(url, "UPDATE changes SET at = 1")
        swept = run(sys.executable, "-m", "service", "live", "sweep", DATABASE_URL=limited)
        assert (swept.returncode, swept.stderr) == (0, "")
        # The newest one stays.
        assert fetch(url, "SELECT seq FROM changes") == [(2,)]
    finally:
        execute(url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
