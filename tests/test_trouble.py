"""What clients see when the database is in trouble."""

from pathlib import Path

import httpx2

from tests.servers import free_port, running


def test_a_database_that_is_away_is_503(tmp_path: Path) -> None:
    """The service starts without its database and answers 503 with `Retry-After` meanwhile."""
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/notes"
    with running(url, tmp_path / "log") as service:
        for answer in (
            httpx2.get(f"{service}/notes/"),
            httpx2.post(f"{service}/notes/", json={"text": "a", "completed": True}),
        ):
            assert answer.status_code == 503
            assert answer.json() == {"detail": "Service Unavailable"}
            assert int(answer.headers["retry-after"]) > 0
