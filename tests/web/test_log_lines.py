"""LOG_FORMAT=json: each line of the process is one object, whatever clients send."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from service import log_lines
from service.web import access_log, middleware
from tests.support import databases
from tests.support.databases import ROOT
from tests.support.raw import connect, send
from tests.support.servers import free_port, nowhere, process, uvicorn
from tests.support.sockets import connect as connect_socket
from tests.support.sockets import read_all
from tests.support.waiting import poll
from tests.web.test_asgi import ask
from tests.web.test_tracing import PARENT, SPAN_ID, TRACE_ID

LINE = {"timestamp", "level", "message"}
TRACE = {"trace_id": TRACE_ID, "span_id": SPAN_ID, "trace_flags": "01"}


def parse(line: str) -> dict[str, Any]:
    """The object of a line. AssertionError if it is none, or has a name twice."""

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), line
        return dict(pairs)

    found = json.loads(line.encode(), object_pairs_hook=make)
    assert isinstance(found, dict)
    assert found.keys() >= LINE
    return found


def lines_of(log: Path) -> list[dict[str, Any]]:
    *lines, last = log.read_text().split("\n")
    assert last == ""
    return [parse(line) for line in lines]


@contextmanager
def logging_json(
    database_url: str, log: Path, app: str = "service.app:app", **variables: str
) -> Iterator[httpx2.Client]:
    """The service with stdout and stderr in one file, as uvicorn starts it by itself."""
    port = free_port()
    variables |= {"DATABASE_URL": database_url, "LOG_FORMAT": "json"}
    with (
        process(uvicorn(port, "--no-access-log", app=app), port, log, variables),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


def test_every_line_is_an_object(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """Requests and uvicorn's lines are objects, with OpenTelemetry's names."""
    log = tmp_path / "log"
    began = datetime.now(UTC)
    odd = '1.2.3.4" "status":1 "a\\\xe9\t' + "b" * 2000
    with logging_json(new_database("sqlite"), log) as client:
        created = client.post("/notes/", json={"text": "a", "completed": True})
        client.get("/notes/1?q=secret", headers={"traceparent": PARENT})
        client.get("/" + "%22" * 1000)
        with connect(str(client.base_url)) as connection:
            send(connection, "PROPFIND", "/notes/", headers={"x-forwarded-for": odd})
        with connect_socket(str(client.base_url)) as garbage:
            garbage.sendall(b'garbage "\n\r\n\r\n')
            read_all(garbage)
    lines = lines_of(log)
    others = [line for line in lines if "logger" in line]
    assert {line["logger"] for line in others} == {"uvicorn.error"}
    messages = [line["message"] for line in others]
    assert messages[0].startswith("Started server process")
    assert "Application startup complete." in messages
    assert messages[-1].startswith("Finished server process")
    (refused,) = (line for line in others if line["level"] == "WARNING")
    assert refused.keys() == {*LINE, "logger"}
    create, read, unknown, other = (line for line in lines if "logger" not in line)
    for line in (create, read, unknown, other):
        assert 0 < line.pop("http.server.request.duration") < 30
        assert began <= datetime.fromisoformat(line.pop("timestamp"))
        assert line.pop("level") == "INFO"
    assert create == {
        "message": "POST /notes/",
        "http.request.method": "POST",
        "url.path": "/notes/",
        "http.route": "/notes/",
        "http.response.status_code": 200,
        "http.response.body.size": len(created.content),
        "client.address": "127.0.0.1",
        "request_id": created.headers["x-request-id"],
    }
    assert (read["message"], read["url.path"]) == ("GET /notes/{note_id}", "/notes/1")
    assert {name: read[name] for name in TRACE} == TRACE
    assert (unknown["message"], unknown.get("http.route")) == ("GET", None)
    assert unknown["url.path"] == ("/" + "%22" * 1000)[:1000] + "..."
    assert not unknown.keys() & TRACE.keys()
    assert other["message"] == "HTTP /notes/"
    assert other["http.request.method"] == "_OTHER"
    assert other["http.request.method_original"] == "PROPFIND"
    assert other["client.address"] == odd[:1000] + "..."


def test_trouble_has_the_ids_of_its_request(tmp_path: Path) -> None:
    """A warning within a request has the request's ids."""
    log = tmp_path / "log"
    with logging_json(nowhere(), log) as client:
        failed = client.get("/notes/", headers={"traceparent": PARENT})
        assert failed.status_code == 503
    (trouble,) = (line for line in lines_of(log) if line.get("logger") == "service")
    assert trouble["level"] == "WARNING"
    assert trouble["message"].startswith("database unavailable: ")
    assert {name: trouble[name] for name in TRACE} == TRACE
    assert trouble["request_id"] == failed.headers["x-request-id"]


def test_several_processes(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """With scripts/web the process that starts the others writes objects, too."""
    log = tmp_path / "log"
    port = free_port()
    variables = {
        "DATABASE_URL": new_database("sqlite"),
        "LOG_FORMAT": " json",
        "PORT": str(port),
        "WEB_CONCURRENCY": "2",
    }
    with process([str(ROOT / "scripts/web")], port, log, variables):
        poll(lambda: log.read_text().count("Application startup complete.") == 2)
    messages = [line["message"] for line in lines_of(log)]
    assert any(message.startswith("Started parent process") for message in messages)


@pytest.fixture
def written() -> Iterator[list[str]]:
    """The lines that the service writes with `logging`, as JSON."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Handler()
    handler.setFormatter(log_lines.Formatter())
    logger = logging.getLogger("service")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_a_traceback_is_one_field(written: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is one object with its class, its traceback and its request's ids.

    The ids go with the end of the request, also where the event loop keeps its context.
    """
    monkeypatch.setattr(middleware, "LOG_FORMAT", "json")
    contexts = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        contexts.append(copy_context())
        raise KeyError('broken\n"')

    failing = middleware.ServiceMiddleware(application, lambda inner: inner)
    request_id = "a" * 20
    headers = [(b"x-request-id", request_id.encode()), (b"traceparent", PARENT.encode())]
    assert ask(failing, headers=headers)[0]["status"] == 500
    contexts[0].run(logging.getLogger("service").warning, "Later")
    line, later = map(parse, written)
    stacktrace = line.pop("exception.stacktrace")
    assert stacktrace.startswith("Traceback (most recent call last):\n")
    assert stacktrace.endswith("""KeyError: 'broken\\n"'""")
    assert line == {
        "timestamp": line["timestamp"],
        "level": "ERROR",
        "message": "Internal Server Error",
        "logger": "service",
        "request_id": request_id,
        "exception.type": "KeyError",
        **TRACE,
    }
    assert later.keys() == {*LINE, "logger"}


ODD = ["", '"', "\\", "\n", "\x00\x1b[31m", "\x7f", "\u2028\u2029\x85", "é😀", "\ud800", "a\udcffb"]


def line_of(text: str) -> str:
    """The line of an error with this message.

    It is not logged: pytest would keep it, and its processes can't send lone surrogates.
    """
    error = ValueError(text)
    info = (type(error), error, None)
    record = logging.LogRecord("service", logging.ERROR, "", 1, "%s", (text,), info)
    return log_lines.Formatter().format(record)


@pytest.mark.parametrize("odd", ODD)
def test_any_text_is_a_value(odd: str) -> None:
    """A message, a traceback, a path and names are one value each, with any characters."""
    expected = odd.encode(errors="backslashreplace").decode()
    found = parse(line_of(odd))
    assert found["message"] == expected
    assert found["exception.stacktrace"] == f"ValueError: {expected}".removesuffix(": ")
    scope = {
        "method": odd,
        "path": "/",
        "raw_path": odd.encode(errors="surrogatepass"),
        "client": (odd, 1),
        "user": {"username": odd},
    }
    line = access_log.as_json(scope, 0, 0.5, 0, b"a", None)
    assert line.count("\n") == 1
    found = parse(line)
    for name in ("http.request.method_original", "client.address", "user.name"):
        assert found[name] == expected
    assert found["url.path"] == odd.encode(errors="surrogatepass").decode("latin-1")
    assert found["http.server.request.duration"] == 0.5
    assert "http.response.status_code" not in found


@pytest.mark.parametrize("part", ["a", "\x00", '"', "😀", "\ud800"])
def test_long_lines_stay_objects(part: str) -> None:
    """A long message and a long traceback lose their middles, and the line stays an object."""
    text = f"begin {part * 100_000} end"
    line = line_of(text)
    assert 5_000 < len(line) < log_lines.MAX_LINE
    found = parse(line)
    for name, begin in (("message", "begin"), ("exception.stacktrace", "ValueError: begin")):
        assert found[name].startswith(begin)
        assert found[name].endswith(" end")
        assert " ... " in found[name]
