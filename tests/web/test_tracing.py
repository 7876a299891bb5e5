"""The trace of a request: a valid `traceparent` is in the log, and nothing else of one is."""

from pathlib import Path

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from service.web.middleware import ServiceMiddleware
from service.web.tracing import Trace, parse, read_ids
from tests.support import databases
from tests.web.test_asgi import ask
from tests.web.test_seeing import seen

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
REST = f"{TRACE_ID}-{SPAN_ID}-01"
PARENT = f"00-{REST}"


@pytest.mark.parametrize("parent", [PARENT, f"01-{REST}", f"fe-{REST}-", f"cc-{REST}-what-ever."])
def test_a_valid_parent(parent: str) -> None:
    """A field of version 00 has four parts; one of a later version may have more."""
    assert parse(parent.encode()) == Trace(TRACE_ID, SPAN_ID, "01")


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        f"ff-{REST}",
        f"{PARENT}-",
        f"{PARENT}-01",
        f"{PARENT} ",
        f"{PARENT}\n",
        f"01-{REST}.",
        f"01-{REST}1",
        f"0-{REST}",
        f"0g-{REST}",
        f"00_{REST}",
        PARENT[:-1],
        PARENT.upper(),
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[1:]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}0-01",
        f"00-{TRACE_ID}-{SPAN_ID}-.1",
        f"00-{TRACE_ID[:-1]}g-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID[:-2]}\xe9-01",
    ],
)
def test_an_invalid_parent(parent: str) -> None:
    """Any other field counts as none."""
    assert parse(parent.encode("latin-1")) is None


def test_several_parents_count_as_none() -> None:
    """Nobody can tell which of several fields is right, even if they are the same."""
    field = (b"traceparent", PARENT.encode())
    assert read_ids([field])[1] == Trace(TRACE_ID, SPAN_ID, "01")
    for several in ([field, field], [field] * 3, [field, (b"traceparent", b"")]):
        assert read_ids(several)[1] is None


def test_a_trace_is_in_its_line(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """The line of a request has the ids of its trace, if it has one."""
    with (
        seen(new_database("sqlite"), tmp_path) as service,
        httpx2.Client(base_url=service.url, timeout=30) as client,
    ):
        for parent in (PARENT, f"{PARENT}-x", PARENT):
            client.get("/notes/1", headers={"traceparent": parent})
        client.get("/notes/1")
        lines = service.wait_for_lines(4)
    named = [(line.get("trace_id"), line.get("span_id")) for line in lines]
    assert named == [(TRACE_ID, SPAN_ID), (None, None)] * 2


def test_a_trace_is_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """An error of the service is logged with the ids of its request's trace."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    failing = ServiceMiddleware(application, lambda inner: inner)
    request_id = "a" * 20
    headers = [(b"x-request-id", request_id.encode()), (b"traceparent", PARENT.encode())]
    assert ask(failing, headers=headers)[0]["status"] == 500
    (record,) = caplog.records
    assert record.getMessage() == f"request_id={request_id} trace_id={TRACE_ID} span_id={SPAN_ID}"
    assert record.exc_info is not None
