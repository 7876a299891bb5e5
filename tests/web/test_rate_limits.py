"""RATE_LIMIT: how often the client at an address may ask."""

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from starlette.exceptions import HTTPException
from starlette.routing import Route

from service.app import RESOURCES, app, document
from service.openapi.document import document as make_document
from service.settings.rates import SECONDS, Rate
from service.web.rate_limits import CAPACITY, SECOND, Allowances, RateLimits, address_of
from service.web.routing import Methods
from tests.support.databases import NewDatabase
from tests.support.metrics import counts
from tests.support.servers import nowhere, serving
from tests.support.sockets import connect, head, read_answer
from tests.support.waiting import poll

# One comes back in 1,200 seconds, longer than any run of these tests.
LIMIT = 3
VARIABLES = {"RATE_LIMIT": f"{LIMIT}/hour"}
BACK = 1200
ORIGIN = {"origin": "https://app.example.com"}
DETAIL = {"detail": "Too many requests: at most 3 per hour"}


class Limited(NamedTuple):
    """A service with a limit, behind a router. A test that uses it has addresses of its own."""

    client: httpx2.Client
    log: Path


@pytest.fixture(scope="module")
def limited(
    new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Limited]:
    log = tmp_path_factory.mktemp("limits") / "log"
    variables = VARIABLES | {"CORS_ORIGINS": ORIGIN["origin"]}
    with serving(new_database("sqlite"), log, **variables) as client:
        yield Limited(client, log)


def of(address: str) -> dict[str, str]:
    """The headers of a request that a router passes on from an address."""
    return {"x-forwarded-for": address}


def exhaust(client: httpx2.Client, address: str) -> None:
    """Sends as many requests from an address as it may."""
    for _ in range(LIMIT):
        assert client.get("/notes/", headers=of(address)).status_code == 200


def is_limited(client: httpx2.Client, address: str) -> bool:
    """Whether the next request from an address is refused."""
    status = client.get("/notes/", headers=of(address)).status_code
    assert status in (200, 429)
    return status == 429


def test_the_surplus_of_an_address_is_refused(limited: Limited) -> None:
    """Beyond the limit a client gets a 429 with the seconds to wait, and others are served."""
    exhaust(limited.client, "203.0.113.1")
    refused = limited.client.get("/notes/", headers=of("203.0.113.1"))
    assert refused.status_code == 429
    assert refused.json() == DETAIL
    assert 0 < int(refused.headers["retry-after"]) <= BACK
    assert refused.headers["content-type"] == "application/json"
    assert refused.headers["x-content-type-options"] == "nosniff"
    assert len(refused.headers["x-request-id"]) >= 20
    assert not is_limited(limited.client, "203.0.113.2")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PATCH", "PURGE"])
def test_every_method_counts(limited: Limited, method: str) -> None:
    """Each request for a resource counts, whatever its method and its answer."""
    address = of(f"2001:db8:{method.encode().hex()[:4]}::1")
    for _ in range(LIMIT):
        answer = limited.client.request(method, "/notes/", headers=address)
        assert answer.status_code in (200, 204, 405)
    refused = limited.client.request(method, "/notes/", headers=address)
    assert refused.status_code == 429
    assert refused.content == b"" if method == "HEAD" else refused.json() == DETAIL


def test_all_resources_count_together(limited: Limited) -> None:
    """A client has one limit for all paths of the resources."""
    for path in ("/notes/7", "/notes/batch", "/notes/8"):
        assert limited.client.get(path, headers=of("203.0.113.4")).status_code in (404, 405)
    assert is_limited(limited.client, "203.0.113.4")


def test_a_network_of_ipv6_is_one_client(limited: Limited) -> None:
    """The addresses of a /64 share a limit. Those of the next one have their own."""
    for number in range(LIMIT):
        assert not is_limited(limited.client, f"2001:db8::{number}:1")
    assert is_limited(limited.client, "2001:DB8:0:0:ffff:ffff:ffff:ffff")
    assert not is_limited(limited.client, "2001:db8:0:1::")


def test_health_and_pages_are_apart(limited: Limited) -> None:
    """Health checks, metrics and /docs don't count, and are served beyond the limit."""
    address = of("203.0.113.5")
    paths = ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json", "/nowhere")

    def ask_all() -> None:
        for path in paths:
            expected = 404 if path == "/nowhere" else 200
            assert limited.client.get(path, headers=address).status_code == expected

    ask_all()
    exhaust(limited.client, "203.0.113.5")
    assert is_limited(limited.client, "203.0.113.5")
    ask_all()


def test_browsers_can_read_it(limited: Limited) -> None:
    """A page of another origin sees the 429 and Retry-After. Its preflights don't count."""
    preflight = ORIGIN | of("203.0.113.6") | {"access-control-request-method": "POST"}
    for _ in range(LIMIT):
        assert limited.client.options("/notes/", headers=preflight).status_code == 200
    exhaust(limited.client, "203.0.113.6")
    refused = limited.client.get("/notes/", headers=ORIGIN | of("203.0.113.6"))
    assert refused.status_code == 429
    assert refused.headers["access-control-allow-origin"] == ORIGIN["origin"]
    assert "Retry-After" in refused.headers["access-control-expose-headers"].split(", ")
    assert limited.client.options("/notes/", headers=preflight).status_code == 200


def test_operators_see_it(limited: Limited) -> None:
    """A 429 is counted under its route, and has a line in the log."""
    exhaust(limited.client, "203.0.113.7")
    before = counts(limited.client).get(("/notes/", "GET", "429"), 0)
    assert is_limited(limited.client, "203.0.113.7")
    assert counts(limited.client)["/notes/", "GET", "429"] == before + 1
    line = re.compile(r"path=/notes/ status=429 .* fwd=203\.0\.113\.7$", re.MULTILINE)
    poll(lambda: line.search(limited.log.read_text()) is not None, limited.log.read_text)


def test_no_body_is_awaited(limited: Limited) -> None:
    """A 429 comes before the body of its request."""
    exhaust(limited.client, "203.0.113.8")
    fields = ("Content-Type: application/json", "Content-Length: 9", "X-Forwarded-For: 203.0.113.8")
    with connect(str(limited.client.base_url)) as client:
        client.sendall(head("POST", "/notes/", *fields))
        assert read_answer(client)[0].status == 429


def test_addresses_of_strangers_are_not_believed(new_database: NewDatabase, tmp_path: Path) -> None:
    """Who is no trusted router can't choose an address to count for."""
    trusted = "--forwarded-allow-ips=10.0.0.0/8"
    with serving(new_database("sqlite"), tmp_path / "log", trusted, **VARIABLES) as client:
        for number in range(LIMIT):
            assert not is_limited(client, f"203.0.113.{number}")
        assert is_limited(client, "203.0.113.200")


def test_the_database_is_not_asked(tmp_path: Path) -> None:
    """While the database is away, the surplus is a 429 and not a 503."""
    with serving(nowhere(), tmp_path / "log", **VARIABLES) as client:
        statuses = [client.get("/notes/").status_code for _ in range(LIMIT + 2)]
        assert statuses == [503] * LIMIT + [429] * 2


def test_the_document_tells_the_limit(limited: Limited) -> None:
    """With a limit the document has it, and the 429 at all operations but the example's."""
    served = limited.client.get("/openapi.json").json()
    validate(served, cls=OpenAPIV31SpecValidator)
    assert "3 requests per hour" in served["info"]["description"]
    for path, item in served["paths"].items():
        for method, operation in item.items():
            if path == "/notes/":
                assert operation == document["paths"][path][method]
            else:
                described = operation["responses"].pop("429")
                assert described["headers"]["Retry-After"]["schema"]["type"] == "integer"
                assert operation == document["paths"][path][method]


def test_without_a_limit_nothing_is_counted() -> None:
    """By default no layer counts requests, and the document is as before."""
    assert "429" not in str(document)
    assert make_document(RESOURCES, by_token=False) == document
    for route in app.routes:
        assert isinstance(route, Route)
        assert isinstance(route.app, Methods)


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("203.0.113.7", "203.0.113.8", False),
        ("203.0.113.7", "::ffff:203.0.113.7", True),
        ("203.0.113.7", "64:ff9b::203.0.113.7", True),
        ("::ffff:203.0.113.7", "::ffff:203.0.113.8", False),
        ("2001:db8::1", "2001:0DB8:0::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("203.0.113.7", "unknown", False),
        # What is no address can't be many.
        ("unknown", "a" * 10_000, True),
        ("unknown", "é\0\udcff", True),
        ("203.0.113.007", "1", True),
        (":", "1:2", True),
    ],
)
def test_what_is_one_address(one: str, other: str, are_same: bool) -> None:
    """However it is written, an IPv4 address is one client, and a /64 of IPv6 is."""
    keys = [address_of({"client": (host, 1)}) for host in (one, other)]
    assert (keys[0] == keys[1]) == are_same
    assert all(len(key) in (0, 4, 8) for key in keys)


def test_clients_without_an_address_are_one() -> None:
    """All clients of a Unix socket share a limit."""
    assert address_of({}) == address_of({"client": None}) == address_of({"client": ("", 0)}) == b""


class Clock:
    def __init__(self) -> None:
        self.now = 10**15

    def __call__(self) -> int:
        return self.now


UNITS = st.sampled_from(sorted(SECONDS))
RATES = st.builds(Rate, st.integers(1, 8) | st.integers(1, 999_999), UNITS)
# In ten-thousandths of the time of the rate: often none, often about a few requests.
PAUSES = st.one_of(st.just(0), st.integers(0, 50), st.integers(0, 25_000))


@given(RATES, st.lists(st.tuples(PAUSES, st.sampled_from("ab"), st.booleans()), max_size=60))
def test_never_more_than_the_rate(rate: Rate, steps: list[tuple[int, str, bool]]) -> None:
    """In any time, no more pass than the limit, what came back and what was given back."""
    clock = Clock()
    whole = SECONDS[rate.unit] * SECOND
    allowances = Allowances(rate, 1000, clock)
    passed: dict[str, list[int]] = {"a": [], "b": []}
    returned: dict[str, list[int]] = {"a": [], "b": []}
    for pause, key, is_returned in steps:
        clock.now += whole * pause // 10_000
        if not allowances.take(key):
            passed[key].append(clock.now)
            if is_returned:
                allowances.give_back(key)
                returned[key].append(clock.now)
    for key, times in passed.items():
        for first, start in enumerate(times):
            for last, end in enumerate(times[first:], first):
                given_back = sum(start <= time <= end for time in returned[key])
                most = rate.requests + given_back + Fraction((end - start) * rate.requests, whole)
                assert last - first + 1 <= most


@given(RATES, st.lists(PAUSES, max_size=20))
def test_who_waits_as_told_passes(rate: Rate, pauses: list[int]) -> None:
    """After the seconds of Retry-After a request passes; a second before it does not."""
    clock = Clock()
    allowances = Allowances(rate, 1000, clock)
    for pause in pauses:
        clock.now += SECONDS[rate.unit] * SECOND * pause // 10_000
        for _ in range(min(rate.requests, 20)):
            if wait := allowances.take("a"):
                assert wait >= 1
                start = clock.now
                clock.now = start + (wait - 1) * SECOND
                assert wait == 1 or allowances.take("a") == 1
                clock.now = start + wait * SECOND
                assert allowances.take("a") == 0


EXACT = st.builds(Rate, st.sampled_from([1, 2, 3, 5]), st.just("minute"))


@given(EXACT, st.lists(st.tuples(PAUSES, st.integers(0, 2), st.booleans()), max_size=60))
def test_it_is_a_bucket(rate: Rate, steps: list[tuple[int, int, bool]]) -> None:
    """Each client may send what a bucket holds that fills at the rate, even if it was silent.

    What is given back is in the bucket again.
    """
    clock = Clock()
    allowances = Allowances(rate, 1000, clock)
    buckets: dict[int, tuple[Fraction, int]] = {}
    for pause, key, is_returned in steps:
        clock.now += 60 * SECOND * pause // 10_000
        left, since = buckets.get(key, (Fraction(rate.requests), clock.now))
        filled = Fraction((clock.now - since) * rate.requests, 60 * SECOND)
        left = min(Fraction(rate.requests), left + filled)
        assert (allowances.take(key) == 0) == (left >= 1)
        if left >= 1 and is_returned:
            allowances.give_back(key)
        elif left >= 1:
            left -= 1
        buckets[key] = (left, clock.now)


@pytest.mark.parametrize("before", range(10))
def test_only_what_came_back_is_left(before: int) -> None:
    """After most of the time of the rate, its part has come back, whenever the others ask."""
    clock = Clock()
    allowances = Allowances(Rate(5, "minute"), 1000, clock)

    def pause(tenths: int) -> None:
        for _ in range(tenths):
            clock.now += 6 * SECOND
            allowances.take("other")

    pause(before)
    assert [allowances.take("a") for _ in range(6)] == [0, 0, 0, 0, 0, 12]
    pause(9)
    assert [allowances.take("a") for _ in range(5)] == [0, 0, 0, 0, 6]


def test_half_a_million_addresses() -> None:
    """Half a million addresses take bounded memory. A client that keeps asking stays limited."""
    limits = RateLimits(Rate(1, "hour"))
    limits.count({"client": ("203.0.113.1", 1)})
    for number in range(5 * CAPACITY):
        limits.count({"client": (f"2001:db8:{number >> 16:x}:{number & 65535:x}::", 1)})
        if number % CAPACITY == 0:
            with pytest.raises(HTTPException, match="429"):
                limits.count({"client": ("203.0.113.1", 1)})
    assert len(limits._addresses) <= 2 * CAPACITY
    assert len(limits._users) == 0


def test_silent_clients_take_no_memory() -> None:
    """Who has its whole allowance again is forgotten, when others ask."""
    clock = Clock()
    allowances = Allowances(Rate(5, "minute"), 1000, clock)
    for key in range(100):
        allowances.take(key)
    assert len(allowances) == 100
    for _ in range(2):
        clock.now += 60 * SECOND
        allowances.take("other")
    assert len(allowances) <= 2
