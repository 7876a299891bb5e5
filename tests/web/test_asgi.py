"""The application takes all that ASGI allows, from servers and from other applications."""

import asyncio
import logging
import time
from typing import Any

import orjson
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from service import metrics
from service.app import Service, app
from service.database.errors import DatabaseUnavailable, NotConnected
from service.notes.resource import usual
from service.web import access_log, middleware, slots
from service.web.errors import answer
from service.web.middleware import ServiceMiddleware
from service.web.requests import read_body

START = {"type": "http.response.start", "status": 200}
BODY = {"type": "http.response.body"}


def ask(
    application: Any,
    method: str = "GET",
    path: str = "/",
    received: str = "http.request",
    **scope: Any,
) -> list[Message]:
    """What the application sends to a server that gives no more than it must."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": received}

    async def send(message: Message) -> None:
        sent.append(message)

    least = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [],
        "query_string": b"",
        **scope,
    }
    asyncio.run(application(least, receive, send))
    return sent


def answering(*messages: Message) -> ServiceMiddleware:
    """The outermost layer around an application that sends these messages."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return ServiceMiddleware(application, lambda inner: inner)


def test_a_body_may_be_read_in_another_task() -> None:
    """A middleware that runs the application in a task of its own leaves no place taken."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await asyncio.create_task(read_body(request))
        for message in (START, BODY):
            await send(message)

    before = len(slots.deadlines)
    layer = ServiceMiddleware(application, lambda inner: inner)
    ask(layer, "POST", headers=[(b"content-length", b"9000")])
    assert len(slots.deadlines) == before


@pytest.mark.parametrize("scope", [{}, {"service.whole": True}])
def test_a_client_that_left_is_no_defect(
    caplog: pytest.LogCaptureFixture, scope: dict[str, Any]
) -> None:
    """A client that is gone before its body is read leaves no error in the log."""
    headers = [(b"content-length", b"9")]
    start, _ = ask(app, "POST", "/notes/", "http.disconnect", headers=headers, **scope)
    assert start["status"] == 400
    assert caplog.records == []


@pytest.mark.parametrize("given", [{}, {"headers": ()}, {"headers": []}, {"headers": iter([])}])
def test_headers_may_be_missing_or_of_any_kind(given: dict[str, Any]) -> None:
    """An application may send no headers, or any iterable of them, and a body without `body`."""
    start, body = ask(answering(START | given, BODY))
    assert [name for name, _ in start["headers"]] == [b"x-content-type-options", b"x-request-id"]
    assert body == BODY


def test_messages_stay_as_they_were() -> None:
    """An application may send the same message for each request."""
    fields: list[tuple[bytes, bytes]] = [(b"a", b"b")]
    application = answering(START | {"headers": fields}, BODY)
    assert [len(ask(application)[0]["headers"]) for _ in range(2)] == [3, 3]
    assert fields == [(b"a", b"b")]


def test_messages_of_extensions_pass() -> None:
    """A message that only an extension knows reaches the server unchanged."""
    trailers = {"type": "http.response.trailers", "headers": [(b"a", b"b")]}
    assert ask(answering(START | {"trailers": True}, BODY, trailers))[2] == trailers


@pytest.mark.parametrize("extensions", [{}, {"extensions": None}, {"extensions": {"tls": {}}}])
def test_a_server_may_have_no_way_to_abort(extensions: dict[str, Any]) -> None:
    """An answer that takes too long ends, also on a server with other extensions."""

    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    assert len(ask(ServiceMiddleware(stuck, lambda inner: inner), **extensions)) == 1


@pytest.mark.parametrize(
    ("error", "unread", "reason"),
    [
        (HTTPException(503), 0, "HTTPException(status_code=503, detail='Service Unavailable')"),
        (HTTPException(503), 1, "HTTPException(status_code=503, detail='Service Unavailable')"),
        (asyncio.CancelledError(), 0, "its time is over"),
        (asyncio.CancelledError(), 1, None),
        (ClientDisconnect(), 0, None),
    ],
)
def test_an_answer_that_breaks_off_leaves_a_line(
    caplog: pytest.LogCaptureFixture, error: BaseException, unread: int, reason: str | None
) -> None:
    """The log says why the service ends an answer after its head, and no line blames a client."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        raise error

    layer = ServiceMiddleware(broken, lambda inner: inner)
    request_id = "a" * 20
    headers = [(b"x-request-id", request_id.encode())]
    extensions = {"service.unread": lambda: unread}
    assert len(ask(layer, headers=headers, extensions=extensions)) == 1
    expected = [f"request_id={request_id} answer broke off: {reason}"] if reason else []
    assert [record.getMessage() for record in caplog.records] == expected


def test_a_stream_is_measured_until_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream counts with the time until its answer began, however long a client takes it."""
    measured: list[float] = []
    began: list[float] = []
    monkeypatch.setattr(metrics, "request", lambda *values: measured.append(values[-1]))

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        scope["service.answered"] = time.perf_counter()
        began.append(scope["service.answered"])
        await asyncio.sleep(0.05)
        await send(BODY)

    started = time.perf_counter()
    ask(ServiceMiddleware(stream, lambda inner: inner))
    assert measured[0] <= began[0] - started


def test_a_request_whose_time_is_over_is_cancelled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a request still has to do after its time goes on to its end."""
    monkeypatch.setattr(middleware, "REQUEST_TIMEOUT", 0.01)
    forever = asyncio.Event()
    cleaned: list[bool] = []

    async def clean_up() -> None:
        """Takes until the times of all have been looked at once more."""
        other = asyncio.create_task(asyncio.sleep(3600))
        slots.deadlines[other] = 0.0
        await asyncio.wait([other])
        del slots.deadlines[other]
        cleaned.append(True)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(layer._cancel_overdue())
        try:
            await forever.wait()
        finally:
            await clean_up()
            watch.cancel()

    layer = ServiceMiddleware(slow, lambda inner: inner)
    assert ask(layer)[0]["status"] == 503
    assert cleaned == [True]


def test_the_service_needs_no_more_than_asgi(capfd: pytest.CaptureFixture[str]) -> None:
    """A scope with no more than is required is answered, and logged."""
    assert ask(app, path="/health/live")[0]["status"] == 200
    assert ask(app, path="/é")[0]["status"] == 404
    access_log.end()
    assert "path=/%C3%A9 status=404" in capfd.readouterr().out


def test_a_root_path_may_end_with_a_slash() -> None:
    """The server of the document has no slash at its end: clients add paths to it."""
    *_, body = ask(app, path="/api//openapi.json", root_path="/api/")
    assert orjson.loads(body["body"])["servers"][0]["url"] == "/api"


def test_head_is_logged_with_what_it_sent(capfd: pytest.CaptureFixture[str]) -> None:
    """`HEAD` sends no bytes of a body."""
    ask(app, "HEAD", "/health/live")
    access_log.end()
    assert " bytes=0 " in capfd.readouterr().out


def test_without_the_lifespan_a_line_says_what_is_missing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that needs the database gets a 503, and the log has one line about the lifespan."""
    monkeypatch.setattr("service.web.errors._logged_at", float("-inf"))
    with caplog.at_level(logging.WARNING):
        assert ask(app, path="/notes/")[0]["status"] == 503
    (line,) = [record for record in caplog.records if record.name == "service"]
    assert "run the application's lifespan" in line.getMessage()
    assert line.exc_info is None
    with pytest.raises(NotConnected, match="lifespan"):
        asyncio.run(usual.items.queries.get([1]))


def test_the_log_names_a_file_that_cannot_be_read(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers read files in HOME; the line in the log says which one failed."""
    monkeypatch.setattr("service.web.errors._logged_at", float("-inf"))
    error = DatabaseUnavailable()
    error.__cause__ = PermissionError(
        13, "Permission denied", "/home/notes/.postgresql/postgresql.crt"
    )
    asyncio.run(answer(error))
    assert "/home/notes/.postgresql/postgresql.crt" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"debug": True}, {"exception_handlers": {404: print}}, {"max_body_size": 0}],
)
def test_options_without_an_effect_are_refused(options: dict[str, Any]) -> None:
    """Options of Starlette that this application would ignore are refused in words."""
    with pytest.raises(ValueError, match=f"{next(iter(options))} has no effect here"):
        Service(**options)


def test_handlers_are_refused_later_too() -> None:
    """`add_exception_handler` and `debug` after the start of the program are refused as well."""
    with pytest.raises(ValueError, match="exception_handlers has no effect"):
        Service().add_exception_handler(404, print)
    late: Starlette = Service()
    late.debug = True
    with pytest.raises(ValueError, match="debug has no effect"):
        ask(late)
