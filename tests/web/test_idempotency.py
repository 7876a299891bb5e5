"""Safe retries: a write with an `Idempotency-Key` is carried out once."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.support.databases import execute, kind_of
from tests.support.servers import serving
from tests.support.waiting import at_once

NOTE = {"text": "é \u2028", "completed": False}
OTHER = {"text": "other", "completed": True}

# Each path with a body, another body, and the number of notes that the body makes.
SINGLE = ("/notes/", NOTE, OTHER, 1)
BATCH = ("/notes/batch", [NOTE, OTHER, NOTE], [NOTE, OTHER], 3)
PATHS = pytest.mark.parametrize(
    ("path", "body", "other", "count"), [SINGLE, BATCH], ids=["single", "batch"]
)

DAY = 24 * 60 * 60
LINES = "application/x-ndjson"


def post(
    client: httpx2.Client, path: str, body: object, key: str, **headers: str
) -> httpx2.Response:
    headers["idempotency-key"] = key
    raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    return client.post(path, json=body, headers=raw)


def texts(client: httpx2.Client) -> list[str]:
    return [note["text"] for note in client.get("/notes/").json()]


def make_older(database_url: str, seconds: int) -> None:
    execute(database_url, f"UPDATE idempotency_keys SET created_at = created_at - {seconds}")


def assert_reused(answer: httpx2.Response) -> None:
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert error["type"] == "idempotency_key_reused"
    assert error["loc"] == ["header", "idempotency-key"]


def assert_same(answer: httpx2.Response, first: httpx2.Response) -> None:
    assert first.status_code == 200, first.text
    assert (answer.status_code, answer.content) == (first.status_code, first.content)
    assert answer.headers["content-type"] == first.headers["content-type"]


@pytest.fixture(scope="module")
def database_url(shared_database_url: str) -> str:
    """The database of both services, which all tests of this module share."""
    return shared_database_url


@pytest.fixture(autouse=True)
def nothing_stored(database_url: str) -> None:
    execute(database_url, "DELETE FROM notes", "DELETE FROM idempotency_keys")


@pytest.fixture(scope="module")
def services(processes: list[str]) -> Iterator[list[httpx2.Client]]:
    """Clients of two services on the same database."""
    one, two = processes
    with (
        httpx2.Client(base_url=one, timeout=30) as first,
        httpx2.Client(base_url=two, timeout=30) as second,
    ):
        yield [first, second]


@pytest.fixture
def service(services: list[httpx2.Client]) -> httpx2.Client:
    return services[0]


@PATHS
def test_a_retry_gets_the_first_answer(
    service: httpx2.Client, path: str, body: object, other: object, count: int
) -> None:
    """The same key and body gets the first answer to the byte and stores nothing more."""
    first = post(service, path, body, "a")
    for _ in range(3):
        assert_same(post(service, path, body, "a"), first)
    assert len(texts(service)) == count


@PATHS
def test_other_requests_are_no_retries(
    service: httpx2.Client, path: str, body: object, other: object, count: int
) -> None:
    """The same body stores anew under another key, under a key in other case, and under none."""
    answers = [post(service, path, body, "a"), post(service, path, body, "b")]
    answers += [post(service, path, body, "A"), service.post(path, json=body)]
    answers += [service.post(path, json=body)]
    assert len({answer.content for answer in answers}) == 5
    assert len(texts(service)) == 5 * count


@pytest.mark.parametrize("key", ["a", "a" * 255, "!#$%&'()*+,-./:;<=>?@[]^_`{|}~", "0"])
def test_quotes_are_not_part_of_the_key(service: httpx2.Client, key: str) -> None:
    """The quoted form of the IETF's draft and the bare form are the same key."""
    first = post(service, "/notes/", NOTE, key)
    assert_same(post(service, "/notes/", NOTE, f'"{key}"'), first)
    assert_reused(post(service, "/notes/", OTHER, f'"{key}"'))
    assert texts(service) == [NOTE["text"]]


@pytest.mark.parametrize(
    "key",
    ["", '""', '"', "a b", "a\tb", "a" * 256, f'"{"a" * 256}"', "é", "Ã©"],
)
def test_a_key_that_is_none(service: httpx2.Client, key: str) -> None:
    """A key that is empty, too long or not visible ASCII is 422 and stores nothing."""
    for path, body, *_ in (SINGLE, BATCH):
        answer = post(service, path, body, key)
        assert answer.status_code == 422
        assert [error["loc"] for error in answer.json()["detail"]] == [
            ["header", "idempotency-key"]
        ]
    assert texts(service) == []


@pytest.mark.parametrize("keys", [("a", "b"), ("a", "a"), ('"a"', '"b"')])
def test_two_keys_are_none(service: httpx2.Client, keys: tuple[str, str]) -> None:
    """A request with two keys is 422, as a retry might have only one of them."""
    headers = [("idempotency-key", key) for key in keys]
    answer = service.post("/notes/", json=NOTE, headers=headers)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert (error["loc"], error["input"]) == (["header", "idempotency-key"], ", ".join(keys))
    assert texts(service) == []


def test_the_first_answer_outlives_its_note(service: httpx2.Client) -> None:
    """A retry gets the first answer also when the note was changed or deleted since."""
    first = post(service, "/notes/", NOTE, "a")
    batch = post(service, "/notes/batch", [NOTE, OTHER], "b")
    for note in (first.json(), *batch.json()):
        assert service.patch(f"/notes/{note['id']}", json={"text": "new"}).is_success
    assert_same(post(service, "/notes/", NOTE, "a"), first)
    assert_same(post(service, "/notes/batch", [NOTE, OTHER], "b"), batch)
    for note in (first.json(), *batch.json()):
        assert service.delete(f"/notes/{note['id']}").is_success
    assert_same(post(service, "/notes/", NOTE, "a"), first)
    assert_same(post(service, "/notes/batch", [NOTE, OTHER], "b"), batch)
    assert texts(service) == []


def test_the_first_answer_outlives_the_service(
    database_url: str, service: httpx2.Client, tmp_path: Path
) -> None:
    """A retry gets the first answer also from a service that was started since."""
    first = post(service, "/notes/", NOTE, "a")
    batch = post(service, "/notes/batch", [NOTE, OTHER], "b")
    with serving(database_url, tmp_path / "log") as later:
        assert_same(post(later, "/notes/", NOTE, "a"), first)
        assert_same(post(later, "/notes/batch", [NOTE, OTHER], "b"), batch)
        assert_reused(post(later, "/notes/", OTHER, "a"))
        assert len(texts(later)) == 3


@PATHS
def test_a_key_for_another_request_is_refused(
    service: httpx2.Client, path: str, body: object, other: object, count: int
) -> None:
    """The same key with another body or path is 422, and the first answer stays."""
    first = post(service, path, body, "a")
    assert_reused(post(service, path, other, "a"))
    for other_path, other_body, *_ in (SINGLE, BATCH):
        if other_path != path:
            assert_reused(post(service, other_path, other_body, "a"))
    assert_same(post(service, path, body, "a"), first)
    assert len(texts(service)) == count


def test_the_same_bytes_on_the_other_path_are_another_request(service: httpx2.Client) -> None:
    """The bytes of a note, sent as a batch of one line, are no retry of the note."""
    line = json.dumps(OTHER).encode()
    for paths in (("/notes/", "/notes/batch"), ("/notes/batch", "/notes/")):
        answers = []
        for path in paths:
            kind = "application/x-ndjson" if path == "/notes/batch" else "application/json"
            headers = {"Idempotency-Key": paths[0], "Content-Type": kind}
            answers.append(service.post(path, content=line, headers=headers))
        assert answers[0].status_code == 200
        assert_reused(answers[1])
    assert len(texts(service)) == 2


@PATHS
def test_a_refused_request_leaves_its_key_free(
    service: httpx2.Client, path: str, body: object, other: object, count: int
) -> None:
    """A request that fails validation does not use up its key."""
    for wrong in ({"text": 7}, [NOTE, {"text": "\0"}], []):
        assert post(service, path, wrong, "a").status_code == 422
    assert post(service, "/notes/", NOTE | {"completed": "?"}, "a").status_code == 422
    assert post(service, path, body, "a").status_code == 200
    assert len(texts(service)) == count


@PATHS
def test_retries_at_once_store_once(
    services: list[httpx2.Client], path: str, body: object, other: object, count: int
) -> None:
    """Of the same requests at once, to two services, one stores. All get its answer."""
    for key in ("a", "b", "c", "d", "e"):
        answers = at_once(
            [partial(post, services[number % 2], path, body, key) for number in range(10)]
        )
        for answer in answers:
            assert_same(answer, answers[0])
    assert len(texts(services[0])) == 5 * count


def test_of_different_requests_at_once_one_wins(services: list[httpx2.Client]) -> None:
    """Of different requests with the same key at once, one stores. The others are 422."""
    bodies = [{"text": f"{number}", "completed": True} for number in range(10)]
    stored = []
    for key in ("a", "b", "c", "d", "e"):
        answers = at_once(
            [
                partial(post, services[number % 2], "/notes/", body, key)
                for number, body in enumerate(bodies)
            ]
        )
        (winner,) = (answer for answer in answers if answer.status_code == 200)
        stored.append(winner.json()["text"])
        for answer in answers:
            if answer is not winner:
                assert_reused(answer)
    assert texts(services[0]) == stored


def test_requests_at_once_dont_disturb_each_other(services: list[httpx2.Client]) -> None:
    """New requests, retries, misuse and requests without a key don't disturb each other."""
    for turn in range(3):
        first = post(services[0], "/notes/", NOTE, f"old-{turn}")
        before = len(texts(services[0]))

        def act(number: int, turn: int = turn) -> httpx2.Response:
            client = services[number // 4 % 2]
            note = {"text": f"{turn}-{number}", "completed": True}
            match number % 4:
                case 0:
                    return post(client, "/notes/", note, f"new-{turn}-{number}")
                case 1:
                    return post(client, "/notes/", NOTE, f"old-{turn}")
                case 2:
                    return post(client, "/notes/", note, f"old-{turn}")
                case _:
                    return client.post("/notes/", json=note)

        answers = at_once([partial(act, number) for number in range(20)])
        for number, answer in enumerate(answers):
            if number % 4 == 1:
                assert_same(answer, first)
            elif number % 4 == 2:
                assert_reused(answer)
            else:
                assert answer.json()["text"] == f"{turn}-{number}"
        assert sorted(texts(services[0])[before:]) == sorted(
            f"{turn}-{number}" for number in range(20) if number % 4 in (0, 3)
        )


@PATHS
def test_a_key_lives_a_day(
    database_url: str,
    service: httpx2.Client,
    path: str,
    body: object,
    other: object,
    count: int,
) -> None:
    """A key stands for its first request for 24 hours and is a new one after them."""
    first = post(service, path, body, "a")
    make_older(database_url, DAY - 60)
    assert_same(post(service, path, body, "a"), first)
    assert_reused(post(service, path, other, "a"))

    make_older(database_url, 61)
    second = post(service, path, body, "a")
    assert second.status_code == 200
    assert second.content != first.content
    assert_same(post(service, path, body, "a"), second)
    assert len(texts(service)) == 2 * count

    make_older(database_url, DAY + 1)
    third = post(service, path, other, "a")
    assert_same(post(service, path, other, "a"), third)
    assert_reused(post(service, path, body, "a"))


OLD = "SELECT count(*) FROM idempotency_keys WHERE idempotency_keys.key LIKE 'old%'"


def test_old_keys_are_swept(database_url: str, service: httpx2.Client) -> None:
    """Requests with keys remove those that are older than a day, and no others."""
    for number in range(30):
        assert post(service, "/notes/", NOTE, f"old-{number}").is_success
    make_older(database_url, DAY + 1)
    young = [post(service, "/notes/", NOTE, f"young-{number}") for number in range(30)]
    assert execute(database_url, OLD) == 0
    for number, first in enumerate(young):
        assert_same(post(service, "/notes/", NOTE, f"young-{number}"), first)
    assert len(texts(service)) == 60


def forbid(database_url: str, table: str) -> None:
    """Makes every new row of the table an error."""
    match kind_of(database_url):
        case "sqlite":
            fail = "BEGIN SELECT RAISE(ABORT, 'forbidden'); END"
        case "mysql":
            fail = "FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'forbidden'"
        case _:
            execute(
                database_url,
                "CREATE OR REPLACE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql"
                " AS $$ BEGIN RAISE EXCEPTION 'forbidden'; END $$",
            )
            fail = "FOR EACH ROW EXECUTE FUNCTION forbid()"
    execute(database_url, f"CREATE TRIGGER forbidden BEFORE INSERT ON {table} {fail}")


def allow(database_url: str, table: str) -> None:
    on_table = f" ON {table}" if kind_of(database_url) == "postgresql" else ""
    execute(database_url, f"DROP TRIGGER forbidden{on_table}")


@pytest.mark.parametrize("table", ["notes", "idempotency_keys"])
def test_a_key_and_its_notes_are_stored_together(
    database_url: str, service: httpx2.Client, table: str
) -> None:
    """If the key or the notes can't be stored, neither is, and the key stays free."""
    forbid(database_url, table)
    for path, body, *_ in (SINGLE, BATCH):
        # uvicorn closes the connection after an error that nobody expects.
        answer = post(service, path, body, "a", connection="close")
        assert answer.status_code == 500
    for name in ("notes", "idempotency_keys"):
        assert execute(database_url, f"SELECT count(*) FROM {name}") == 0
    allow(database_url, table)
    first = post(service, "/notes/", NOTE, "a")
    assert_same(post(service, "/notes/", NOTE, "a"), first)
    assert len(texts(service)) == 1


@PATHS
def test_a_retry_may_prefer_no_body(
    service: httpx2.Client, path: str, body: object, other: object, count: int
) -> None:
    """`Prefer: return=minimal` gets 204 for the first request and for its retries."""
    for key, prefers in (("a", (True, True)), ("b", (False, True))):
        for prefer in prefers:
            headers = {"prefer": "return=minimal"} if prefer else {}
            answer = post(service, path, body, key, **headers)
            assert answer.status_code == (204 if prefer else 200)
            assert answer.content == b"" or not prefer
    assert len(texts(service)) == 2 * count


@pytest.mark.parametrize("accepts", [("*/*", LINES), (LINES, "*/*"), (LINES, LINES)])
def test_a_retry_may_ask_for_another_format(
    service: httpx2.Client, accepts: tuple[str, str]
) -> None:
    """The answer to a batch, or to its retry, is in the format that the request accepts."""
    answers = [
        post(service, "/notes/batch", [NOTE, OTHER], "a", accept=accept) for accept in accepts
    ]
    notes = service.get("/notes/").json()
    assert [note["text"] for note in notes] == [NOTE["text"], OTHER["text"]]
    for answer, accept in zip(answers, accepts, strict=True):
        assert answer.status_code == 200
        if accept == LINES:
            assert answer.headers["content-type"] == LINES
            assert [json.loads(line) for line in answer.content.splitlines()] == notes
        else:
            assert answer.headers["content-type"] == "application/json"
            assert answer.json() == notes
