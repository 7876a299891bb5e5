"""Requests whose bodies don't come: they wait in a room of their own, and hold up nobody."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx2
import pytest

from tests.support import databases
from tests.support.sockets import head, is_closed, read_answer
from tests.support.watched import Service, watching

NOTE = json.dumps({"text": "a", "completed": True}).encode()
# Of one client's address, at most.
ROOM = 1000
MAX_REQUESTS = 20


@pytest.fixture(scope="module")
def service(
    new_database: databases.NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("waiting") / "log"
    with watching(new_database("sqlite"), log, MAX_REQUESTS=str(MAX_REQUESTS)) as service:
        yield service


def announcement(address: str, length: int) -> bytes:
    """The head of a POST, which comes from an address by way of a router."""
    fields = (f"Content-Length: {length}", f"X-Forwarded-For: {address}")
    return head("POST", "/notes/", "Content-Type: application/json", *fields)


def announced(service: Service, stack: ExitStack, address: str, length: int) -> socket.socket:
    """A connection with such a head."""
    client = stack.enter_context(service.connect())
    client.sendall(announcement(address, length))
    return client


def statuses(service: Service) -> list[int]:
    """What a bystander gets."""
    with httpx2.Client(base_url=service.url, timeout=30) as client:
        note = {"text": "a", "completed": True}
        answers = [
            answer
            for _ in range(10)
            for answer in (client.get("/notes/?limit=5"), client.post("/notes/", json=note))
        ]
        return [answer.status_code for answer in answers]


def test_heads_without_bodies_take_no_slots(service: Service) -> None:
    """More heads than MAX_REQUESTS leave a bystander as before, and their bodies may still come."""
    before = statuses(service)
    with ExitStack() as stack:
        waiting = [announced(service, stack, "10.0.0.1", len(NOTE)) for _ in range(60)]
        assert statuses(service) == before == [200] * len(before)
        for client in waiting:
            client.sendall(NOTE)
            assert read_answer(client)[0].status == 200


def test_the_oldest_body_of_an_address_gives_way(service: Service) -> None:
    """An address that fills its room loses its oldest bodies, and no other address loses one."""
    surplus = 100
    before = statuses(service)
    with ExitStack() as stack:
        honest = announced(service, stack, "10.0.0.2", len(NOTE))
        waiting = [announced(service, stack, "10.0.0.1", len(NOTE)) for _ in range(ROOM + surplus)]
        assert statuses(service) == before == [200] * len(before)
        for client in waiting[:surplus]:
            answer, _ = read_answer(client)
            assert (answer.status, answer.getheader("retry-after")) == (503, "1")
            assert is_closed(client)
        for client in waiting[surplus:]:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
            client.setblocking(True)
        honest.sendall(NOTE)
        assert read_answer(honest)[0].status == 200
        waiting[-1].sendall(NOTE)
        assert read_answer(waiting[-1])[0].status == 200


def test_bodies_that_never_end_take_bounded_memory(service: Service) -> None:
    """Bodies of 1 MB that lack their last byte take at most their room's bytes."""
    body = b" " * 1_000_000
    before = statuses(service)
    memory = service.memory()
    with ExitStack() as stack:
        for _ in range(180):
            client = announced(service, stack, "10.0.0.3", len(body) + 1)
            with suppress(ConnectionError):
                client.sendall(body)
        assert statuses(service) == before == [200] * len(before)
        # 64 MB of bodies, and what is copied while they come.
        assert service.memory() - memory < 110_000_000


def test_bodies_that_have_come_leave_their_room(service: Service) -> None:
    """While a body waits, others from its address may come without end, one after the other."""
    body = b" " * 1_000_000
    with ExitStack() as stack:
        announced(service, stack, "10.0.0.4", len(NOTE))
        client = announced(service, stack, "10.0.0.4", len(body))
        # More than an address's room has bytes.
        for _ in range(70):
            client.sendall(body)
            assert read_answer(client)[0].status == 422
            client.sendall(announcement("10.0.0.4", len(body)))


def test_a_body_takes_a_slot_when_it_is_there(service: Service) -> None:
    """Requests beyond MAX_REQUESTS get a 503 also if their bodies come at the same time."""
    with ExitStack() as stack, databases.locked(service.database_url):
        waiting = [announced(service, stack, "10.0.0.1", len(NOTE)) for _ in range(30)]
        for client in waiting:
            client.sendall(NOTE)
        refused = 30 - MAX_REQUESTS
        found: list[socket.socket] = []
        while len(found) < refused:
            found += select.select([one for one in waiting if one not in found], [], [], 20)[0]
        assert len(found) == refused
        for client in found:
            answer, body = read_answer(client)
            assert answer.status == 503
            assert json.loads(body) == {"detail": "Too many requests are under way"}
