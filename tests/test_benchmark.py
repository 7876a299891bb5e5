"""The benchmark's own client, whose latencies and checks the published figures rest on."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

import pytest

from benchmarks import pages
from benchmarks.answers import make_note, to_json
from benchmarks.growth import Batches, Growth, Sample, markdown, parse_batches
from benchmarks.load import Shot, parse
from benchmarks.paced import Order, drive
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


@pytest.mark.parametrize(
    ("page", "name", "make"),
    [("README.md", "speed", pages.chart), ("docs/benchmark.md", "ratios", pages.ratios)],
)
def test_published_figures_are_those_of_the_run(
    page: str, name: str, make: Callable[[dict[str, object]], list[str]]
) -> None:
    """The figures of a page are what the published results.json says, and nothing else."""
    results = json.loads((ROOT / "benchmarks/results.json").read_text())
    assert results["spoiled"] == []
    block = "\n".join(["", *make(results), ""])
    assert f"<!-- {name} -->{block}<!-- /{name} -->" in (ROOT / page).read_text()


def test_a_lead_is_one_in_every_round() -> None:
    """A contender that was ahead in some rounds only is named as undecided."""
    rates = {"service": [10, 10], "bun": [11, 12], "bare": [9, 11], "twin": [5, 4]}
    cell = {
        "title": "create",
        "connections": 1,
        "contenders": {name: {"rates": found} for name, found in rates.items()},
    }
    (line,) = pages.leads({"contenders": {name: name for name in rates}}, [cell], [*rates])
    assert line == (
        "**Ahead of this service with 1 connection:** bun (create)."
        " Undecided, because the rounds differ: bare (create)."
    )
