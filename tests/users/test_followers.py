"""What docs/live.md shows: the events, and clients that follow with a token."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.support.databases import ROOT, NewDatabase, environment, execute
from tests.support.following import Follower, asking, live
from tests.support.operating import add_user
from tests.support.servers import free_port, process, uvicorn
from tests.support.waiting import poll

NEW = {"text": "Buy milk", "completed": False}
ID = re.compile(r"[0-9a-f]{32}-[0-9a-f.]+-[0-9a-f.]*-[0-9a-f]+-[0-9a-f]+")


def shown(heading: str, language: str) -> str:
    """The first block of code in a language below a heading of the page."""
    page = (ROOT / "docs/live.md").read_text()
    found = re.search(rf"^## {heading}\n.*?^```{language}\n(.*?)^```", page, re.M | re.S)
    assert found is not None
    return found[1]


class Site:
    """A service on SQLite with ACCESS=token, which may be started again at its address."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.database_url = database_url
        self.log = folder / "service.log"
        self.token = add_user(database_url, "bob")
        self.headers = {"Authorization": f"Bearer {self.token}"}
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.client = httpx2.Client(base_url=self.url, headers=self.headers)
        self._running = ExitStack()

    def start(self) -> None:
        variables = {"DATABASE_URL": self.database_url, "LIVE": "1", "ACCESS": "token"}
        server = process(uvicorn(self._port), self._port, self.log, variables)
        self._running.enter_context(server)

    def stop(self) -> None:
        self._running.close()
        assert "Traceback" not in self.log.read_text()


@pytest.fixture(scope="module")
def site(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    database_url = new_database("sqlite")
    live(database_url)
    site = Site(database_url, tmp_path_factory.mktemp("site"))
    site.start()
    with site.client:
        yield site
    site.stop()


def test_events_are_as_shown(site: Site) -> None:
    """The service sends the events of the page, with other ids and another time to wait."""
    with asking(f"{site.url}/notes", site.headers) as answer:
        lines = [answer.readline().decode() for _ in range(6)]
        site.client.post("/notes/", json=NEW)
        site.client.patch("/notes/1", json={"completed": True})
        site.client.delete("/notes/1")
        lines += [answer.readline().decode() for _ in range(11)]

    def usual(text: str) -> str:
        return re.sub(r"(?m)^retry: [1-4]\d{3}$", "retry: 1000", ID.sub("an-id", text))

    assert usual("".join(lines)) == usual(shown("Events", "text"))


def test_the_log_has_the_time_of_a_stream(site: Site) -> None:
    """The line of a follower has the time from the request to the end of the stream."""
    name = "follower-with-a-long-name"
    with asking(f"{site.url}/notes", {**site.headers, "X-Request-ID": name}) as answer:
        began = time.perf_counter()
        follower = Follower(answer)
        follower.take(1)
        site.client.post("/notes/", json=NEW)
        follower.take(1)
        least = (time.perf_counter() - began) * 1000
    line = re.compile(rf" duration_ms=(\S+) .* request_id={name} ").search
    poll(lambda: line(site.log.read_text()) is not None, site.log.read_text)
    found = line(site.log.read_text())
    assert found is not None
    assert float(found[1]) >= least


def test_the_page_needs_open_access(site: Site) -> None:
    """A browser's EventSource can't send a token, so the page isn't there."""
    assert [site.client.get(path).status_code for path in ("/docs", "/docs/live")] == [200, 404]


def test_clients_follow(site: Site, tmp_path: Path) -> None:
    """The page's clients list the notes and apply what happens, also while the service is down."""
    commands = {
        "Python": (sys.executable, "-c"),
        "JavaScript": ("node", "--input-type=module", "-e"),
    }
    if shutil.which("node") is None:
        assert "CI" not in os.environ, "nothing is left out in CI"
        del commands["JavaScript"]
    execute(site.database_url, "DELETE FROM notes")
    note = site.client.post("/notes/", json=NEW).json()
    expected: list[str] = []

    def printed(name: str) -> list[str]:
        lines = (tmp_path / name).read_text().splitlines()
        return [re.sub(r" .* (?=\d+ notes$)", " ", line) for line in lines]

    def expect(*lines: str) -> None:
        expected.extend(lines)
        poll(
            lambda: all(printed(name) == expected for name in commands),
            lambda: [printed(name) for name in commands],
        )

    with ExitStack() as stack:
        for name, command in commands.items():
            code = shown(f"A client in {name}", "python" if name == "Python" else "js")
            code = code.replace("http://localhost:8000", site.url).replace("TOKEN", site.token)
            output = stack.enter_context((tmp_path / name).open("w"))
            client = subprocess.Popen(
                [*command, code], stdout=output, stderr=output, env=environment()
            )
            stack.callback(client.wait)
            stack.callback(client.kill)
        expect("start 1 notes")
        other = site.client.post("/notes/", json={"text": 'a: "b"\n\nü', "completed": False}).json()
        site.client.patch(f"/notes/{other['id']}", json={"completed": True})
        site.client.delete(f"/notes/{note['id']}")
        expect("created 2 notes", "changed 2 notes", "deleted 1 notes")
        site.stop()
        execute(site.database_url, "INSERT INTO notes (text, completed) VALUES ('c', false)")
        site.start()
        expect("created 2 notes")
