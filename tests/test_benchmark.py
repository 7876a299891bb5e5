"""The benchmark's own client, whose latencies and checks the published figures rest on."""

import asyncio
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from threading import Thread
from typing import Any

import pytest

from benchmarks import paced, pages, report
from benchmarks.answers import make_changed, make_exchange, make_note, to_json
from benchmarks.contenders import CONTENDERS, UVICORN
from benchmarks.followers import Followers
from benchmarks.growth import Batches, Growth, Sample, markdown, parse_batches
from benchmarks.load import Shot, parse, quietly
from benchmarks.paced import Order, drive
from benchmarks.processes import Usage, divide, slowness
from tests.support.databases import ROOT


def serve(listener: socket.socket, answer: Callable[[int, int], bytes]) -> None:
    """Answers on one connection until it ends; `answer` has the request's place and the note."""
    connection, _ = listener.accept()
    with connection:
        place = 0
        while request := connection.recv(65536):
            place += 1
            found = re.match(rb"GET /notes/(\d+) ", request)
            assert found is not None
            body = answer(place, int(found[1]))
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)


@contextmanager
def serving(answer: Callable[[int, int], bytes]) -> Iterator[Order]:
    """Serves notes, and yields an order for half a second of them on one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve, args=(listener, answer))
        thread.start()
        port = listener.getsockname()[1]
        yield Order(port, {}, 1, rate=200, seconds=0.5, notes=5, ids=5, kinds=("one",))
        thread.join()


def test_a_server_that_stands_still_delays_all_that_is_due() -> None:
    """A latency counts from when the request was due, also where none could be sent then."""

    def stand_still(place: int, note_id: int) -> bytes:
        time.sleep(0.3 if place == 10 else 0)
        return to_json(make_note(note_id))

    with serving(stand_still) as order:
        latencies, trouble = drive(order)

    assert trouble == ""
    assert sum(latency > 0.1 for latency in latencies) > 20


def test_an_answer_to_another_request_is_wrong() -> None:
    """A note that is right in itself but not the one that was asked for counts as wrong."""

    def mix_up(place: int, note_id: int) -> bytes:
        return to_json(make_note(note_id % 5 + 1 if place == 10 else note_id))

    with serving(mix_up) as order:
        _, trouble = drive(order)

    assert trouble.startswith("Wrong answers: 1, the first: /notes/")


def test_wrong_answers_spoil_a_run_of_wrk() -> None:
    """What the script of wrk says of wrong answers is found in wrk's report."""
    report = "  8879 requests in 1.01s, 1.00MB read\nRequests/sec:   8791.38\n"

    assert parse(report, 0) == (8879, 8791.38, "")
    wrong = "Wrong answers: 1, the first: 200 []"
    assert parse(f"{report}{wrong}\n", 0) == (8879, 8791.38, wrong)


def test_followers_see_what_was_told() -> None:
    """New notes count however their events arrive, and who was told less is noticed."""
    event = b"event: created\nid: %d\ndata: {}\n\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        streams = []

        def start() -> None:
            for _ in range(2):
                streams.append(listener.accept()[0])
                streams[-1].sendall(b"retry: 1000\n\nevent: start\nid: 1\ndata: {}\n\n")

        thread = Thread(target=start)
        thread.start()
        followers = Followers(listener.getsockname()[1], 2)
        thread.join()
        first, second = followers.clients
        assert (followers.created, followers.are_together()) == (0, True)
        for piece in (event % 2 + b"event: crea", b"ted\nid: 3\ndata: {}\n", b"\n"):
            streams[0].sendall(piece)
            followers.read(first)
        assert (followers.created, followers.are_together()) == (2, False)
        streams[1].sendall(event % 2 + event % 3)
        followers.read(second)
        assert followers.are_together()
        for one in (*streams, first, second):
            one.close()


def test_batches_of_all_queries_are_added() -> None:
    """Whichever query callers have shared, it counts."""
    metrics = """\
# TYPE coalesced_batch_size histogram
coalesced_batch_size_bucket{query="get_notes",le="1.0"} 7.0
coalesced_batch_size_count{query="get_notes"} 10.0
coalesced_batch_size_sum{query="get_notes"} 25.0
coalesced_batch_size_count{query="list_notes"} 2.0
coalesced_batch_size_sum{query="list_notes"} 35.0
http_request_duration_seconds_count{route="/notes/",method="GET",status="200"} 99.0
"""
    assert parse_batches(metrics) == Batches(queries=12, callers=60)


def test_what_grows_with_the_processes() -> None:
    """A row has the median rate, and the means of all rounds that are not spoiled."""
    samples = [
        Sample(Shot(100, 100.0, server_cpu=3.0, database_cpu=1.0), Batches(10, 100), 3),
        Sample(Shot(300, 300.0, server_cpu=3.0, database_cpu=1.0), Batches(10, 300), 4),
        Sample(Shot(spoiled="no answers"), Batches(), 0),
    ]
    growth = Growth({}, {"list 100": {1: samples, 2: samples[2:]}})

    rows = [re.split(r" *\| *", line)[1:-1] for line in markdown(growth).splitlines()]
    assert ["1 process", "200 (100-300)", "20.0", "25%", "4"] in rows
    assert ["2 processes", *["spoiled"] * 4] in rows
    assert growth.spoiled() == [
        "list 100, 1 process, round 3: no answers",
        "list 100, 2 processes, round 1: no answers",
    ]


RESULTS = json.loads((ROOT / "benchmarks/results.json").read_text())


@pytest.mark.parametrize(("page", "name"), pages.blocks(RESULTS))
def test_published_figures_are_those_of_the_run(page: str, name: str) -> None:
    """The figures of a page are what the published results.json says, and nothing else."""
    assert RESULTS["spoiled"] == []
    block = "\n".join(["", *pages.blocks(RESULTS)[page, name], ""])
    assert f"<!-- {name} -->{block}<!-- /{name} -->" in (ROOT / page).read_text()


def cell_of(rates: dict[str, list[float | None]]) -> dict[str, Any]:
    contenders = {name: {"rates": found} for name, found in rates.items()}
    return {"title": "create", "connections": 1, "contenders": contenders}


def test_a_lead_is_one_in_every_round() -> None:
    """A contender that was ahead in some rounds only is named as undecided."""
    cell = cell_of({"service": [10, 10], "bun": [11, 12], "bare": [9, 11], "twin": [5, 4]})
    names = [*cell["contenders"]]
    assert report.leads({"contenders": dict(zip(names, names, strict=True))}, [cell], names) == (
        "**Ahead of this service with 1 connection:** bun (create)."
        " Undecided, because the rounds differ: bare (create)."
    )


def test_a_figure_whose_spread_includes_1_is_marked() -> None:
    """The rounds that both have are compared one by one; those that were spoiled are left out."""
    cell = cell_of({"service": [10, 12, 30, None], "bun": [11, 10, 20], "twin": [5, 4, 5, 9]})

    assert str(report.against(cell, "service", "bun")) == "~1.20 (0.91-1.50)"
    assert str(report.against(cell, "service", "twin")) == "3.00 (2.00-6.00)"


def test_the_sentence_on_frameworks_follows_from_the_figures() -> None:
    """It says that leaving out FastAPI gains little only where the run has shown it."""
    little = cell_of({"service": [50], "plain": [11], "twin": [10]})
    much = cell_of({"service": [50], "plain": [40], "twin": [10]})

    assert "1.10 to 1.10 times" in report.versus([little])
    assert "gains little" in report.versus([little])
    assert "gains little" not in report.versus([much])
    assert "1.10 to 4.00 times" in report.versus([little, much])


@pytest.mark.parametrize(
    ("others", "repeats", "chosen"),
    [
        ([0.2], 5, 0.2),
        ([0.9, 0.1], 5, 0.1),
        ([0.9, 0.3, 0.6], 2, 0.3),
        ([0.9], 0, 0.9),
        ([0.9, 0.8, 0.6, 0.7], 9, 0.6),
    ],
)
def test_a_turn_that_others_disturb_is_done_again(
    others: list[float], repeats: int, chosen: float
) -> None:
    """It is done again until it is quiet or a limit is reached, and the quietest counts."""
    shots = iter([Shot(others=cores) for cores in others])
    left = iter(range(repeats))

    async def take() -> Shot:
        return next(shots)

    shot = asyncio.run(quietly(take, lambda: next(left, None) is not None))

    assert shot.others == chosen
    assert next(shots, None) is None


def test_the_cpu_of_others_is_that_of_the_machine_without_the_benchmark() -> None:
    """It counts in cores; small differences of the clocks are nobody's CPU."""
    before = Usage(at=10.0, machine=100.0, own=50.0)

    assert Usage(at=12.0, machine=104.0, own=53.0).others_since(before) == 0.5
    assert Usage(at=12.0, machine=104.0, own=54.1).others_since(before) == 0.0


def test_what_slow_cores_lack_is_taken_by_others() -> None:
    """A hypervisor may take a part of each core, of which the machine's own counts know nothing."""
    before = Usage(at=10.0, machine=100.0, own=50.0, slowness=1.0)
    after = Usage(at=12.0, machine=104.0, own=53.0, slowness=1.5)

    assert after.others_since(before, cores=4) == pytest.approx(0.5 + 4 * 0.2)
    assert 1 <= slowness() < math.inf


def test_load_and_servers_share_cores_only_where_there_are_few() -> None:
    """From four cores on each has its own."""
    assert divide({0, 1, 2}) == ({0, 1, 2}, {0, 1, 2})
    assert divide({0, 1, 2, 3, 7}) == ({2, 3, 7}, {0, 1})


def test_requests_are_due_at_the_rate_that_is_ordered() -> None:
    """Every server gets the same requests at the same moments, whatever it can answer."""
    order = Order(1, {}, 32, rate=500, seconds=4, notes=5, ids=5, kinds=("one",))
    due = [request[0] for request in paced.plan(order)]

    assert due == sorted(due)
    assert due[-1] <= 4
    assert len(due) == pytest.approx(2000, rel=0.1)
    assert paced.plan(replace(order, port=2)) == paced.plan(order)


def test_a_changed_note_is_as_long() -> None:
    """Answers can be checked while notes change, and a note that is missing is noticed."""
    notes = [make_note(number) for number in (1, 2, 3)]
    exchange = make_exchange("changing", [to_json(note) for note in notes], 3, Random(1))

    assert exchange.is_answered_by(to_json([notes[0], make_changed(2), notes[2]]), growing=False)
    assert not exchange.is_answered_by(to_json(notes[:2]), growing=False)


def test_all_servers_on_uvicorn_run_as_scripts_web_does() -> None:
    """The options are those of the script, and so are its networks."""
    script = (ROOT / "scripts/web").read_text()
    *flags, networks = UVICORN
    assert f"networks={networks}" in script
    for option in " ".join(flags).split(" --"):
        assert option in script


def test_each_method_has_a_variant_without_it() -> None:
    """Each can be turned off, and all of them together."""
    found = subprocess.run(
        [sys.executable, "-c", "from benchmarks.without import METHODS; print(*METHODS)"],
        cwd=ROOT,
        env=os.environ | {"WITHOUT": "all"},
        capture_output=True,
        text=True,
        check=True,
    )
    variants = {one.without for one in CONTENDERS if one.without}
    assert variants == {*found.stdout.split(), "all"}


COMPILE_TWICE = """
from benchmarks.without import compiling, dialect
from service.health import _SELECT_VERSION

compiled = []
compile_statement = compiling.compile_statement
compiling.compile_statement = lambda *given: compiled.append(1) or compile_statement(*given)
operation = dialect.prepare(_SELECT_VERSION)
print(operation.text() == operation.text(), len(compiled))
"""


@pytest.mark.parametrize(("without", "times"), [("statements", 2), ("schemas", 1)])
def test_a_variant_compiles_at_each_call(without: str, times: int) -> None:
    """Without compiled statements each call compiles; otherwise the first one alone does."""
    found = subprocess.run(
        [sys.executable, "-c", COMPILE_TWICE],
        cwd=ROOT,
        env=os.environ | {"WITHOUT": without},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == f"True {times}\n"
