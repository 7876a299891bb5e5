"""One connection: packets cut anywhere, upgrades, pipelined requests, garbage."""

import asyncio
import hashlib
import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import pytest
import uvicorn
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from service import protocol as protocol_module
from service.one_write import Cycle
from service.protocol import Protocol
from tests.conftest import Server
from tests.support import databases
from tests.support.databases import fill, locked
from tests.support.servers import running
from tests.support.sockets import connect, head, is_closed, json_request, read_answer
from tests.support.watched import watching

NOTE = json.dumps({"text": "a", "completed": True}).encode()
GET = head("GET", "/health/live")
DELETE = head("DELETE", "/notes/1")
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
JSON = "Content-Type: application/json"
# It is answered before its body has come.
POST = head("POST", "/unread", "Content-Length: 3")

# Ways of asking for an upgrade; with each of them llhttp stops behind the head.
UPGRADES = {
    "h2c": H2C,
    "websocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "kept alive": ("Connection: keep-alive, Upgrade", "Upgrade: h2c"),
    "in any case": ("cOnNeCtIoN:upgrade", "UPGRADE:TLS/1.0"),
    "two fields": ("Connection: keep-alive", "Upgrade: a", "Connection: Upgrade", "Upgrade: b"),
    "nothing named": ("Upgrade:", "Connection: Upgrade"),
    "not at all": ("Connection: keep-alive", "Upgrade: h2c"),
    "none": (),
}


def framed(fields: tuple[str, ...], body: bytes, chunked: bool, path: str = "/notes/") -> bytes:
    if not chunked:
        return json_request("POST", path, body, *fields)
    pieces = [body[:5], body[5:]] if len(body) > 5 else [body] if body else []
    content = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    trailers = b"0\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"
    return head("POST", path, *fields, JSON, "Transfer-Encoding: chunked") + content + trailers


class Reader:
    """Reads one answer after the other, where several may come at once."""

    def __init__(self, client: socket.socket) -> None:
        self.file = client.makefile("rb")

    def read(self) -> tuple[int, bytes, str | None]:
        """Status, body and the Connection header."""
        status = int(self.file.readline().split()[1])
        headers = http.client.parse_headers(self.file)
        body = self.file.read(int(headers["content-length"]))
        return status, body, headers["connection"]

    def statuses(self, count: int) -> list[int]:
        return [self.read()[0] for _ in range(count)]

    def is_at_end(self) -> bool:
        try:
            return self.file.read(1) == b""
        except ConnectionError:
            return True


@contextmanager
def connected(server: Server) -> Iterator[tuple[socket.socket, Reader]]:
    with connect(str(server.client.base_url)) as client:
        reader = Reader(client)
        with reader.file:
            yield client, reader


def store(server: Server) -> None:
    """Stores note 1 and no other."""
    databases.clear(server.database_url)
    given = {"content-type": "application/json"}
    assert server.client.post("/notes/", content=NOTE, headers=given).json()["id"] == 1


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
def test_an_upgrade_is_ignored(server: Server, upgrade: tuple[str, ...], chunked: bool) -> None:
    """A request that asks for another protocol is served in this one, and the next one too."""
    databases.clear(server.database_url)
    with connected(server) as (client, reader):
        for text in ("a", DELETE.decode()):
            body = json.dumps({"text": text, "completed": True}).encode()
            client.sendall(framed(upgrade, body, chunked) + GET)
            status, content, _ = reader.read()
            assert (status, json.loads(content)["text"]) == (200, text)
            assert reader.read()[:2] == (200, b'{"status":"live"}')
    assert len(server.client.get("/notes/").json()) == 2


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
def test_a_body_is_never_a_request(server: Server, upgrade: tuple[str, ...]) -> None:
    """A request in the body of another one, upgrade or not, is not carried out."""
    store(server)
    with connected(server) as (client, reader):
        for chunked in (False, True):
            client.sendall(framed(upgrade, DELETE, chunked) + GET)
            assert reader.statuses(2) == [422, 200]
        request = framed(upgrade, DELETE, chunked=False)
        client.sendall(request[: -len(DELETE)])
        client.sendall(request[-len(DELETE) :] + GET)
        assert reader.statuses(2) == [422, 200]
    assert server.client.get("/notes/1").status_code == 200


@pytest.mark.parametrize(
    "request_line",
    ["CONNECT a:80 HTTP/1.1", "CONNECT / HTTP/1.1", "CONNECT /notes/1 HTTP/1.1", "PRI * HTTP/2.0"],
)
def test_there_are_no_tunnels(server: Server, request_line: str) -> None:
    """CONNECT and unasked HTTP/2 get a 400. Nothing behind them is a request."""
    store(server)
    with connected(server) as (client, reader):
        client.sendall(request_line.encode() + b"\r\nHost: localhost\r\n\r\nSM\r\n\r\n" + DELETE)
        status, _, connection = reader.read()
        assert (status, connection) == (400, "close")
        assert reader.is_at_end()
    assert server.client.get("/notes/1").status_code == 200


@pytest.mark.parametrize(
    "garbage", [b"garbage\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"\x16\3\1"]
)
@pytest.mark.parametrize("before", [0, 1, 100])
def test_garbage_behind_requests_gets_its_400_last(
    server: Server, garbage: bytes, before: int
) -> None:
    """Good requests in front of garbage are carried out and answered once, in order."""
    databases.clear(server.database_url)
    with connected(server) as (client, reader):
        client.sendall((framed((), NOTE, False) + GET + head("GET", "/no")) * before + garbage)
        assert reader.statuses(3 * before) == [200, 200, 404] * before
        status, _, connection = reader.read()
        assert (status, connection) == (400, "close")
        assert reader.is_at_end()
    assert len(server.client.get("/notes/").json()) == before


def test_a_broken_body_does_not_hide_answers(server: Server) -> None:
    """A request with a broken body gets a 400, behind the answers to those before it."""
    broken = head("POST", "/notes/", JSON, "Transfer-Encoding: chunked") + b"2\r\n{}}\r\n"
    with connected(server) as (client, reader):
        client.sendall(GET * 3 + broken + GET)
        assert reader.statuses(4) == [200, 200, 200, 400]
        assert reader.is_at_end()


def test_requests_behind_the_last_one_are_left_alone(server: Server) -> None:
    """Behind `Connection: close` nothing is carried out or answered, good or bad."""
    databases.clear(server.database_url)
    for fields in (("Connection: close",), ("Connection: close, Upgrade", "Upgrade: h2c")):
        for rest in (GET, b"garbage\r\n\r\n", framed((), NOTE, False) * 100):
            with connected(server) as (client, reader):
                client.sendall(framed(fields, NOTE, False) + rest)
                status, _, connection = reader.read()
                assert (status, connection) == (200, "close")
                assert reader.is_at_end()
    assert len(server.client.get("/notes/").json()) == 6


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_a_listing_is_not_cut_off_by_what_follows_it(
    new_database: databases.NewDatabase, tmp_path: Path, kind: str
) -> None:
    """An incomplete request behind a long listing doesn't cut the listing off."""
    database_url = new_database(kind)
    fill(database_url, 50_000, "a" * 200)
    with (
        watching(database_url, tmp_path / "log", REQUEST_TIMEOUT="1") as service,
        service.connect(receive_buffer=100_000) as client,
    ):
        began = time.monotonic()
        client.sendall(head("GET", "/notes/") + GET + b"GET /notes/ HTTP/1.1\r\nHost: lo")
        end = b""
        while end != b'{"status":"live"}':
            piece = client.recv(65_536)
            assert piece, "the listing was cut off"
            end = (end + piece)[-17:]
            if time.monotonic() - began < 2:
                time.sleep(0.02)  # it is what is tested
        assert time.monotonic() - began > 2
        assert is_closed(client)


@pytest.mark.parametrize("request_", [GET, framed((), NOTE, False), framed(H2C, NOTE, True)])
def test_requests_that_wait_in_line_take_little_memory(
    new_database: databases.NewDatabase, tmp_path: Path, request_: bytes
) -> None:
    """Thousands of requests behind one that waits cost about as much memory as their bytes."""
    with (
        watching(new_database("postgresql"), tmp_path / "log", REQUEST_TIMEOUT="60") as service,
        locked(service.database_url),
        ExitStack() as clients,
    ):
        before = service.memory()
        for _ in range(40):
            client = clients.enter_context(service.connect())
            client.setblocking(False)
            client.send(head("GET", "/notes/1") + request_ * (400_000 // len(request_)))
        for _ in range(3):
            # It is answered when what came before it has been taken in.
            assert httpx2.get(f"{service.url}/health/live", timeout=60).status_code == 200
        assert service.memory() - before < 40_000_000


class Wire(asyncio.Transport):
    """A client's end of a connection, which keeps the answers."""

    def __init__(self, client: socket.socket) -> None:
        super().__init__({"socket": client})
        self.received = b""
        self.closed = False
        self.paused = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.received += data

    def close(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def test_an_early_answer_leaves_its_connection_idle(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """After the body that was answered before it came, a connection ends as any idle one does."""
    # Another head would have an hour.
    options = ("--timeout-keep-alive=1",)
    with (
        running(new_database("sqlite"), tmp_path / "log", *options, REQUEST_TIMEOUT="3600") as url,
        connect(url) as client,
    ):
        client.settimeout(60)
        client.sendall(head("POST", "/nowhere", "Content-Length: 2") + b"a")
        assert read_answer(client)[0].status == 404
        client.sendall(b"b")
        assert is_closed(client)


def test_a_head_has_time_where_nothing_is_kept_alive() -> None:
    """Where idle connections end at once, one with half of the next head has its answer."""
    config = Config(echo, http=Protocol, log_config=None, lifespan="off", timeout_keep_alive=0)
    config.load()

    async def live(client: socket.socket) -> None:
        wire = Wire(client)
        protocol = Protocol(config, ServerState(), {})
        protocol.connection_made(wire)
        for packet in (GET + GET[:9], GET[9:]):
            protocol.data_received(packet)
            await turns_until(lambda: not protocol.tasks)
        await turns_until(lambda: wire.closed)
        assert wire.received.count(b"HTTP/1.1 200") == 2
        protocol.connection_lost(None)

    with socket.socket() as client, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live(client))


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with its request. Some paths take their time, some read no body."""
    body = b""
    for _ in range(scope["path"].count("slow")):
        await asyncio.sleep(0)
    more_body = "unread" not in scope["path"]
    while more_body:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more_body = message["more_body"]
    content = b"%b %b %b;" % (scope["method"].encode(), scope["path"].encode(), body)
    headers = [(b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(scope["path"].count("late")):
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": content})


CONFIG = Config(echo, http=Protocol, log_config=None, lifespan="off")
CONFIG.load()


class TLSWire(Wire):
    """An end with TLS, which has no half-closed connections."""

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError


def test_a_client_with_tls_that_is_still_sending_has_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is read from for a while, and then the connection ends."""
    monkeypatch.setattr(protocol_module, "LINGER_SECONDS", 0.0)

    async def send_half(client: socket.socket) -> bytes:
        wire = TLSWire(client)
        protocol = Protocol(CONFIG, ServerState(), {})
        protocol.connection_made(wire)
        protocol.data_received(head("POST", "/unread", "Connection: close", "Content-Length: 2"))
        await turns_until(lambda: protocol.transport.is_closing())
        assert not wire.closed
        protocol.data_received(b"a")
        await turns_until(lambda: wire.closed)
        protocol.connection_lost(None)
        return wire.received

    with socket.socket() as client:
        assert asyncio.run(send_half(client)).endswith(b"\r\n\r\nPOST /unread ;")


async def turns_until(condition: Callable[[], bool]) -> None:
    """Lets the event loop turn until the condition holds."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError


async def exchange(packets: list[bytes], pauses: list[int]) -> tuple[list[bytes], bool]:
    """The answers to these packets, and whether the connection is ended."""
    with socket.socket() as client:
        wire = Wire(client)
        protocol = Protocol(CONFIG, ServerState(), {})
        protocol.connection_made(wire)
    try:
        for packet, pause in zip(packets, pauses, strict=True):
            for _ in range(pause):
                await asyncio.sleep(0)
            await turns_until(lambda: not wire.paused or wire.closed)
            if not wire.closed:
                protocol.data_received(packet)
        # Bodies in chunks are parsed in several turns.
        await turns_until(lambda: not protocol.tasks and (not protocol.pending or wire.closed))
        await asyncio.sleep(0)  # what is written last goes out
        closed = wire.closed
    finally:
        protocol.connection_lost(None)
    answers = re.split(rb"HTTP/1\.1 ", wire.received)[1:]
    return [one[:3] + b" " + one.partition(b"\r\n\r\n")[2] for one in answers], closed


def answer(method: str, path: str, body: bytes) -> bytes:
    return b"200 %b %b %b;" % (method.encode(), path.encode(), body)


BODIES = [b"", b"a", b"\r\n\r\n", DELETE, DELETE * 20, b"0\r\n\r\n" + DELETE]
PATHS = ["/", "/slow", "/slowslowslow", "/unread", "/unread/slow", "/unread/late"]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[bytes], bool]:
    """A client's bytes, its answers, and whether the connection ends behind them."""
    sent, answers = b"", []
    for _ in range(draw(st.integers(0, 12))):
        path = draw(st.sampled_from(PATHS))
        upgrade = UPGRADES[draw(st.sampled_from(sorted(UPGRADES)))]
        if draw(st.booleans()):
            sent += head("GET", path, *upgrade)
            answers.append(answer("GET", path, b""))
        else:
            body = draw(st.sampled_from(BODIES))
            sent += framed(upgrade, body, draw(st.booleans()), path)
            answers.append(answer("POST", path, b"" if "unread" in path else body))
    ends = ["", "garbage\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\n\r\n", "last"]
    end = draw(st.sampled_from(ends))
    if end == "last":
        sent += head("GET", "/slow", "Connection: close, Upgrade", "Upgrade: a") + DELETE
        answers.append(answer("GET", "/slow", b""))
    elif end:
        sent += end.encode() + GET
        answers.append(b"400 Invalid HTTP request received.")
    return sent, answers, bool(end)


@given(conversations(), st.data())
@settings(max_examples=200)
def test_how_bytes_are_packed_does_not_matter(
    conversation: tuple[bytes, list[bytes], bool], data: st.DataObject
) -> None:
    """The answers don't depend on how a client's bytes are cut into packets."""
    sent, answers, closed = conversation
    places = st.integers(0, len(sent))
    cuts = sorted(data.draw(st.sets(places, max_size=20) | st.just(set(range(len(sent))))))
    packets = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    packets = [packet for packet in packets if packet]
    pauses = [data.draw(st.integers(0, 4)) for _ in packets[:20]] + [0] * len(packets[20:])
    assert asyncio.run(exchange(packets, pauses)) == (answers, closed)


def test_a_broken_body_does_not_end_an_answer() -> None:
    """An answer that has begun is completed, also if the request's body is broken."""
    request = head("GET", "/unread/latelatelatelate", "Transfer-Encoding: chunked")
    answers = [answer("GET", "/unread/latelatelatelate", b"")]
    packets = [request, b"a body that is none\r\n", GET]
    assert asyncio.run(exchange(packets, [0, 3, 0])) == (answers, True)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_upgrade_is_ignored_wherever_it_is_cut(chunked: bool) -> None:
    """A request with an upgrade and a request in its body is one request, cut at any place."""
    sent = framed(H2C, DELETE, chunked, "/slow") + GET
    answers = [answer("POST", "/slow", DELETE), answer("GET", "/health/live", b"")]
    with asyncio.Runner() as runner:
        for place in range(1, len(sent)):
            for pause in (0, 3):
                packets = exchange([sent[:place], sent[place:]], [0, pause])
                assert runner.run(packets) == (answers, False), place


VALUES = st.binary(max_size=12) | st.sampled_from(
    [b"close", b"keep-alive", b"a, Close", b"a\r\nb: c"]
)
FIELDS = st.lists(
    st.tuples(st.sampled_from([b"content-type", b"link", b"connection"]), VALUES)
    | st.tuples(st.just(b"content-length"), st.sampled_from([b"0", b"5"]))
    | st.tuples(st.just(b"transfer-encoding"), st.just(b"chunked")),
    max_size=5,
)


def written_head(
    kind: type[RequestResponseCycle],
    method: str,
    status: int,
    fields: list[tuple[bytes, bytes]],
    keep: bool,
    log: bool,
) -> tuple[bytes, bool, bool | None, int, str, int]:
    """The bytes of a head, what follows from it for the body, the error, and lines in the log."""
    access_logger = Mock()
    sent: list[bytes] = []
    cycle = kind(
        scope={  # type: ignore[typeddict-item]
            "method": method,
            "path": "/",
            "query_string": b"",
            "http_version": "1.1",
            "client": None,
        },
        transport=Mock(write=sent.append),
        flow=Mock(write_paused=False),
        logger=Mock(),
        access_logger=access_logger,
        access_log=log,
        default_headers=[(b"server", b"uvicorn")],
        message_event=Mock(),
        expect_100_continue=False,
        keep_alive=keep,
        on_response=Mock(),
    )

    async def send() -> None:
        await cycle.send({"type": "http.response.start", "status": status, "headers": fields})

    error = ""
    try:
        asyncio.run(send())
    except RuntimeError as refused:
        error = str(refused)
    body = cycle.keep_alive, cycle.chunked_encoding, cycle.expected_content_length
    return b"".join(sent), *body, error, access_logger.info.call_count


@settings(max_examples=300)
@given(
    method=st.sampled_from(["GET", "HEAD"]),
    status=st.sampled_from([200, 204, 304, 404]),
    fields=FIELDS,
    keep=st.booleans(),
    log=st.booleans(),
)
def test_heads_are_written_as_uvicorn_writes_them(
    method: str, status: int, fields: list[tuple[bytes, bytes]], keep: bool, log: bool
) -> None:
    """The head of a response, or its error, is the same as without the faster way."""
    assert written_head(Cycle, method, status, fields, keep, log) == written_head(
        RequestResponseCycle, method, status, fields, keep, log
    )


@pytest.mark.parametrize("path", ["/read", "/unread"])
def test_a_body_in_tiny_chunks_is_parsed_in_slices(path: str) -> None:
    """The event loop turns while many chunks of one packet are parsed, wanted or not."""
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = 40_000
    packet = (
        head.encode() + b"1\r\na\r\n" * chunks + b"0\r\n\r\nGET /next HTTP/1.1\r\nhost: a\r\n\r\n"
    )
    parsed: list[int] = []

    class Counting(Protocol):
        def on_body(self, body: bytes) -> None:
            parsed[-1] += 1
            super().on_body(body)

    async def receive_packet() -> bytes:
        with socket.socket() as client:
            wire = Wire(client)
            protocol = Counting(CONFIG, ServerState(), {})
            protocol.connection_made(wire)
            parsed.append(0)
            protocol.data_received(packet)
            while wire.received.count(b"HTTP/1.1 200") < 2:
                parsed.append(0)
                await asyncio.sleep(0)
            protocol.connection_lost(None)
        return wire.received

    received = asyncio.run(receive_packet())
    body = b"" if path == "/unread" else b"a" * chunks
    assert b"POST %b %b;HTTP/1.1" % (path.encode(), body) in received
    assert received.endswith(b"GET /next ;")
    assert sum(parsed) == chunks
    assert max(parsed) < chunks / 3


def test_sizes_of_chunks_may_come_alone() -> None:
    """The limit of a head doesn't count a body, also if each chunk comes after its size."""
    chunk = b"a" * 10_000
    chunks = [b"2710\r\n", chunk + b"\r\n"] * 20
    packets = [head("POST", "/read", "Transfer-Encoding: chunked"), *chunks, b"0\r\n\r\n"]
    answers = [answer("POST", "/read", chunk * 20)]
    assert asyncio.run(exchange(packets, [0] * len(packets))) == (answers, False)


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when a test says so. It counts its timers."""

    now = 0.0
    timers = 0

    def time(self) -> float:
        return self.now

    def call_at(self, *arguments: Any, **options: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        self.timers += 1
        return super().call_at(*arguments, **options)


# When a client sends what, and when its connection ends. The settings are in the test.
TIMES: dict[str, tuple[list[tuple[float, bytes]], float]] = {
    "nothing": ([], 25),
    "a request": ([(20, GET)], 25),
    "requests": ([(n / 2, GET) for n in range(60)], 34.5),
    "a head in parts": ([(0, GET), (4, b"G"), (20, b"ET")], 29),
    "an empty line": ([(0, GET), (4, b"\r\n"), (20, b"\r\n")], 29),
    "a head at last": ([(0, GET), (4, GET[:9]), (28, GET[9:])], 33),
    "half of the next": ([(0, GET + GET[:9])], 25),
    "after half a head": ([(10, GET[:9]), (20, GET[9:]), (24, GET)], 29),
    "a body after the answer": ([(0, POST), (4, b"a"), (20, b"a"), (28, b"a")], 33),
    "half a body after it": ([(0, POST), (4, b"a"), (20, b"a")], 29),
    "two at once": ([(1, GET * 2)], 6),
}


@pytest.mark.parametrize("case", TIMES)
def test_a_connection_ends_when_it_was_idle_for_long(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keep-alive counts from the last answer, the time for a head from its first byte.

    Many requests share a timer.
    """
    monkeypatch.setattr("service.settings.REQUEST_TIMEOUT", 25)
    sent, end = TIMES[case]
    config = Config(echo, http=Protocol, log_config=None, lifespan="off", timeout_keep_alive=5)
    config.load()

    async def live(client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clock)
        wire = Wire(client)
        protocol = Protocol(config, ServerState(), {})
        protocol.connection_made(wire)
        for when, packet in [*sent, (end - 0.1, b"")]:
            while loop.now < when:
                loop.now = min(when, loop.now + 0.25)
                for _ in range(4):
                    await asyncio.sleep(0)
            assert not wire.closed
            if packet:
                protocol.data_received(packet)
            await turns_until(lambda: not protocol.tasks)
        loop.now = end + 0.1
        await turns_until(lambda: wire.closed)
        assert loop.timers < 10
        protocol.connection_lost(None)

    with socket.socket() as client, asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(live(client))


# `protocol.py`, `one_write.py` and `shutdown.py` use and replace undocumented parts of these. After
# an upgrade read what has changed (`_should_upgrade`, `cycle`, `pipeline`, `flow`,
# `on_response_complete`, which `Protocol` replaces, ...), and then take the new digest.
READ = {
    "protocols/http/httptools_impl.py": "1d4e1c579df41684",
    "protocols/http/flow_control.py": "d39d16560df512f3",
    "server.py": "c1be9d133467a42a",
}


@pytest.mark.parametrize("name", READ)
def test_uvicorn_is_as_it_was_read(name: str) -> None:
    """What is relied on of uvicorn is the code that was read, also after an upgrade."""
    source = (Path(uvicorn.__file__).parent / name).read_bytes()
    assert hashlib.sha256(source).hexdigest()[:16] == READ[name]
