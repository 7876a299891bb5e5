"""Readers of the log that stall, and devices that are full: no request notices."""

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest

from service.web import output
from tests.support.databases import NewDatabase
from tests.support.metrics import metric
from tests.support.servers import end, free_port, process, uvicorn
from tests.support.sockets import connect, head, read_all, read_answer
from tests.support.template import Process
from tests.support.waiting import poll

DROPPED = "log_lines_dropped_total"


@contextmanager
def logging_to(
    file: str, database_url: str, folder: Path, **variables: str
) -> Iterator[tuple[httpx2.Client, Process]]:
    """The service with stdout and stderr in a file."""
    port = free_port()
    command = ["sh", "-c", 'exec "$@" >"$0" 2>&1', file, *uvicorn(port, "--no-access-log")]
    # Python then buffers what is written, as it does for most users.
    variables |= {"DATABASE_URL": database_url, "PYTHONUNBUFFERED": ""}
    with (
        process(command, port, folder / "log", variables) as server,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client, server


def statuses(client: httpx2.Client) -> list[int]:
    """What a bystander gets."""
    note = {"text": "a", "completed": True}
    return [client.post("/notes/", json=note).status_code for _ in range(20)]


def ask(client: httpx2.Client, path: str, count: int) -> None:
    """Sends requests on a connection of their own, without waiting for their answers."""
    with connect(str(client.base_url)) as other:
        other.sendall(head("GET", path) * (count - 1) + head("GET", path, "Connection: close"))
        assert read_all(other).count(b"HTTP/1.1 404 ") == count


def test_a_reader_that_stalls_holds_up_nobody(new_database: NewDatabase, tmp_path: Path) -> None:
    """With a log that nobody reads a bystander is served as before, and SIGTERM ends the service.

    Lines that find no room are counted, and later ones are written when there is a reader again.
    """
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        with logging_to(str(pipe), new_database("sqlite"), tmp_path) as (client, server):
            before = statuses(client)
            ask(client, "/" + "a" * 60_000, 3)
            ask(client, "/" + "a" * 900, 1500)
            with connect(str(client.base_url)) as other:
                other.sendall(b"garbage\r\n\r\n")
                assert read_answer(other)[0].status == 400
            assert statuses(client) == before == [200] * 20
            assert metric(client, DROPPED) > 100
            end(server)
        with closing(os.fdopen(reader, "rb", closefd=False)) as file:
            text = file.read()
        assert text.count(b"\n") > 20
        assert all(
            re.match(rb"INFO: |method=GET path=/a+|method=POST path=/notes/", line)
            for line in text.splitlines()[:-1]
        )
    finally:
        os.close(reader)


def test_a_full_device_holds_up_nobody(new_database: NewDatabase, tmp_path: Path) -> None:
    """With a log on a full device all requests are answered, and the lost lines counted."""
    with logging_to("/dev/full", new_database("sqlite"), tmp_path) as (client, _):
        assert client.get("/" + "a" * 60_000).status_code == 404
        assert statuses(client) == [200] * 20
        poll(lambda: metric(client, DROPPED) >= 21)


def test_two_names_of_a_file_are_one_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lines on stdout and stderr don't mix where both are the same file."""
    monkeypatch.setattr(output, "_outputs", {})
    log, other = tmp_path / "log", tmp_path / "other"
    with log.open("a") as stdout, log.open("a") as stderr, other.open("a") as file:
        assert output.of(stdout) is output.of(stderr)
        assert output.of(stdout) is not output.of(file)


def test_long_values_are_cut(new_database: NewDatabase, tmp_path: Path) -> None:
    """A line has at most a few KB, whatever a client sends."""
    log = tmp_path / "stdout"
    with logging_to(str(log), new_database("sqlite"), tmp_path) as (client, _):
        forwarded = {"x-forwarded-for": "b" * 30_000}
        assert client.get("/" + "a" * 30_000, headers=forwarded).status_code == 404
        assert client.get("/" + "%22" * 10_000).status_code == 404
        poll(lambda: log.read_text().count("status=404") == 2)
    lines = [line for line in log.read_text().splitlines() if line.startswith("method=")]
    assert f"path=/{'a' * 999}... " in lines[0]
    assert f"fwd={'b' * 1000}..." in lines[0]
    assert max(map(len, lines)) < 4000
