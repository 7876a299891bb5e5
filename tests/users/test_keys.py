"""The keys of an identity provider: when they are read, and what of."""

import asyncio
import json
import threading
import time
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from service import settings
from service.users import fetching, keys
from service.users.keys import Key, Keys, ProviderUnavailable
from tests.support.provider import Provider, new_key, providing, public_jwk

NAMES = ("a", "b")


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keys, "time", clock)
    return clock


class Source:
    """Gives keys by their names, or fails, and counts how often it was asked."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.error: Exception | None = None
        self.asked = 0

    def __call__(self) -> list[Key]:
        self.asked += 1
        if self.error:
            raise self.error
        return [Key(name, ("ES256",), name) for name in self.names]


async def found(kept: Keys, kid: str | None, algorithm: str = "ES256") -> str:
    """The name of the key that is found, "none", or "away"."""
    try:
        key = await kept.find(kid, algorithm)
    except ProviderUnavailable:
        return "away"
    return "none" if key is None else str(key.public)


async def settle(kept: Keys) -> None:
    """Waits for the read that goes on in the background."""
    assert kept._task is not None
    await kept._task


def test_unknown_names_are_asked_for_once_a_minute(clock: Clock) -> None:
    """Of all unknown names in a minute the first is asked for. A key that is new then counts."""

    async def ask() -> None:
        source = Source("a")
        kept = Keys(source)
        assert await found(kept, "a") == "a"
        source.names = NAMES
        assert [await found(kept, kid) for kid in ("b", "x", "y", "a")] == [
            "b",
            "none",
            "none",
            "a",
        ]
        assert source.asked == 2
        clock.now += 59
        assert await found(kept, "x") == "none"
        assert source.asked == 2
        clock.now += 2
        many = await asyncio.gather(*(found(kept, f"{number}") for number in range(50)))
        assert (many, source.asked) == (["none"] * 50, 3)

    asyncio.run(ask())


def test_keys_are_kept_while_the_provider_is_away(clock: Clock) -> None:
    """Known keys go on, however long it is away. Without any it is asked again, but seldom.

    When it is back, what it doesn't know is invalid again.
    """

    async def ask() -> None:
        source = Source(*NAMES)
        source.error = OSError("away")
        kept = Keys(source)
        assert await asyncio.gather(*(found(kept, "a") for _ in range(50))) == ["away"] * 50
        assert await found(kept, "a") == "away"
        assert source.asked == 1
        clock.now += keys.RETRY + 1
        source.error = None
        assert await found(kept, "a") == "a"
        source.error = OSError("away")
        for _ in range(5):
            clock.now += keys.REFRESH + 1
            assert await found(kept, "a") == "a"
            await settle(kept)
        assert [await found(kept, kid) for kid in ("x", "b")] == ["away", "b"]
        source.error = None
        clock.now += keys.REFRESH + 1
        assert await found(kept, "x") == "none"

    asyncio.run(ask())


def test_a_key_that_is_taken_back_ends(clock: Clock) -> None:
    """Keys are read again in the background, and who was verified by others is told so."""

    async def ask() -> None:
        source = Source(*NAMES)
        kept = Keys(source)
        assert await found(kept, "a") == "a"
        version = kept.version
        clock.now += keys.REFRESH + 1
        assert await found(kept, "a") == "a"
        await settle(kept)
        assert source.asked == 2
        assert kept.version == version
        source.names = ("b",)
        clock.now += keys.REFRESH + 1
        # Nobody waits for it, except for who needs it.
        assert await found(kept, "a") == "a"
        assert await found(kept, "x") == "none"
        assert source.asked == 3
        assert kept.version != version
        assert [await found(kept, kid) for kid in NAMES] == ["none", "b"]

    asyncio.run(ask())


def test_names_and_algorithms(clock: Clock) -> None:
    """A token without a name has a key if there is one that fits, and each has its algorithms."""

    async def ask() -> None:
        source = Source(*NAMES)
        kept = Keys(source)
        assert [await found(kept, kid) for kid in (None, "a")] == ["none", "a"]
        assert await found(kept, "a", "RS256") == "none"
        source.names = ("b",)
        kept = Keys(source)
        assert [await found(kept, kid) for kid in (None, "b")] == ["b", "b"]

    asyncio.run(ask())


def test_a_read_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits longer than the limit, nor does the end of the program."""
    monkeypatch.setattr(fetching, "SECONDS", 0.05)
    forever = threading.Event()

    def hang() -> list[Key]:
        forever.wait(600)
        return []

    async def ask() -> str:
        return await found(Keys(hang), "a")

    started = time.monotonic()
    assert asyncio.run(ask()) == "away"
    assert time.monotonic() - started < 300
    forever.set()


def test_who_leaves_ends_no_read() -> None:
    """A request that is cancelled while keys are read leaves them to the others that wait."""
    goes_on = threading.Event()

    def read() -> list[Key]:
        goes_on.wait(60)
        return [Key("a", ("ES256",), "a")]

    async def ask() -> str:
        kept = Keys(read)
        first, second = (asyncio.create_task(found(kept, "a")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        goes_on.set()
        return await second

    assert asyncio.run(ask()) == "a"


def test_a_result_that_comes_too_late_is_dropped() -> None:
    """What a thread gives after its caller is cancelled is no error."""
    began, goes_on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []
    complaints: list[Any] = []

    def work() -> None:
        threads.append(threading.current_thread())
        began.set()
        goes_on.wait(60)

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        caller = asyncio.create_task(fetching.in_thread(work))
        await asyncio.to_thread(began.wait, 60)
        caller.cancel()
        await asyncio.wait([caller])
        goes_on.set()
        await asyncio.to_thread(threads[0].join)
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert complaints == []


def load(provider: Provider, monkeypatch: pytest.MonkeyPatch, jwks_url: str = "") -> Any:
    monkeypatch.setattr(settings, "JWT_ISSUER", provider.url)
    monkeypatch.setattr(settings, "JWT_JWKS_URL", jwks_url)
    return [key.kid for key in keys.load()]


DISCOVERY = "/realms/a/.well-known/openid-configuration"


def test_keys_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider's document tells where the keys are; of the set those for signatures count."""
    with providing() as provider:
        key = new_key("ES256")
        good = public_jwk(key, "good", "ES256")
        provider.publish(
            good,
            good | {"kid": "enc", "use": "enc"},
            good | {"kid": "alg", "alg": "HS256"},
            good | {"kid": "d", "d": good["x"]},
            {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
            good | {"kid": "x", "x": 5},
            {},
        )
        provider.answers["/realms/a/certs"]["keys"] += [None, [], "a"]
        assert load(provider, monkeypatch) == ["good"]
        assert load(provider, monkeypatch, f"{provider.url}/certs") == ["good"]
        assert provider.asked == [DISCOVERY, "/realms/a/certs", "/realms/a/certs"]


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (DISCOVERY, None),
        (DISCOVERY, b"no JSON"),
        (DISCOVERY, []),
        (DISCOVERY, {"issuer": "https://other.example.com", "jwks_uri": "{url}/certs"}),
        (DISCOVERY, {"issuer": "{url}", "jwks_uri": ["{url}/certs"]}),
        (DISCOVERY, {"issuer": "{url}"}),
        ("/realms/a/certs", None),
        ("/realms/a/certs", b"[" * 100_000),
        ("/realms/a/certs", {"keys": []}),
        ("/realms/a/certs", {"keys": {}}),
        ("/realms/a/certs", {}),
        ("/realms/a/certs", "keys"),
    ],
)
def test_documents_that_are_no_use(monkeypatch: pytest.MonkeyPatch, path: str, answer: Any) -> None:
    """A document that is missing or of another kind is an error, which keeps the keys."""
    with providing() as provider:
        if isinstance(answer, dict):
            answer = {
                name: value.replace("{url}", provider.url) if isinstance(value, str) else value
                for name, value in answer.items()
            }
        provider.answers[path] = answer
        with pytest.raises(fetching.ERRORS):
            load(provider, monkeypatch)


def test_huge_documents_are_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in a document over the limit don't count."""
    with providing() as provider:
        document = json.dumps(provider.answers["/realms/a/certs"]).encode()
        provider.answers["/realms/a/certs"] = document.ljust(fetching.MAX_BYTES)
        assert load(provider, monkeypatch) == ["a"]
        provider.answers["/realms/a/certs"] += b" "
        with pytest.raises(ValueError, match="over 262144 bytes"):
            load(provider, monkeypatch)


def test_a_document_that_comes_too_slowly_is_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of time is for the whole document, and not for each part of it."""
    clock = Clock()
    until = clock.now + 50
    monkeypatch.setattr(fetching, "time", clock)

    def read_late(*_: object) -> bytes:
        clock.now += 30
        return b" "

    with providing() as provider:
        assert fetching.read_json(f"{provider.url}/certs", until)
        monkeypatch.setattr(HTTPResponse, "read1", read_late)
        with pytest.raises(TimeoutError, match="takes longer"):
            fetching.read_json(f"{provider.url}/certs", until)


def test_keys_come_by_http(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The provider can't make the service read a file."""
    with providing() as provider:
        file = tmp_path / "keys.json"
        file.write_text(json.dumps(provider.answers["/realms/a/certs"]))
        provider.answers[DISCOVERY]["jwks_uri"] = file.as_uri()
        with pytest.raises(ValueError, match="at an address of https"):
            load(provider, monkeypatch)


def test_redirects_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys come from the address that is configured, not from where it points."""
    with providing() as provider:
        provider.redirects["/realms/a/old"] = f"{provider.url}/certs"
        with pytest.raises(OSError, match="HTTP Error 302"):
            load(provider, monkeypatch, f"{provider.url}/old")
