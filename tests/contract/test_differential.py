"""A thousand random requests, sent to the service and to the FastAPI example alike."""

import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel
from pydantic_core import PydanticCustomError, PydanticKnownError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from tests.contract.conftest import Pair
from tests.support.documents import documents, valid
from tests.support.notes import known
from tests.support.raw import Answer, send


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A document with bytes cut out, put in or put in another's place."""
    body = bytearray(draw(documents))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(body)))
        body[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(body)


bodies = documents | broken() | st.binary(max_size=20) | st.none()
content_types = st.none() | st.sampled_from(
    ["application/json"] * 5
    + [
        "application/json; charset=utf-8",
        "application/problem+json",
        "text/plain",
        "",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json, text/plain",
        "Application/JSON ; q=1",
    ]
)
paths = st.sampled_from(["/notes/"] * 6 + ["/notes", "/notes/?a=b", "//notes/", "/notes//", "/x"])
methods = st.sampled_from(["POST"] * 6 + ["GET", "PUT", "DELETE", "PATCH", "TRACE", "ABC"])


def refuse_odd_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticKnownError("string_unicode") from None
    if "\0" in text:
        message = "Input should be a valid string without NUL characters"
        raise PydanticCustomError("string_nul", message)
    return text


class BetterNote(BaseModel):
    """A note as the example reads it, but for texts that not every database can store."""

    text: Annotated[str, AfterValidator(refuse_odd_text)]
    completed: bool


better = FastAPI()


@better.post("/notes/")
async def create_note(note: BetterNote) -> dict[str, Any]:
    """The example's answer, if it had no database that can fail."""
    return {"id": 0, **note.model_dump()}


def finite(value: Any) -> Any:
    """The value with null for each number that JSON has no word for."""
    match value:
        case dict():
            return {key: finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value


@better.exception_handler(RequestValidationError)
async def refuse(request: Request, error: RequestValidationError) -> Response:
    """A 422 in the example's words, also where the example fails to write it."""
    try:
        errors = finite(jsonable_encoder(error.errors()))
    except UnicodeDecodeError:
        return JSONResponse({"detail": "There was an error parsing the body"}, 400)
    text = json.dumps({"detail": errors}, ensure_ascii=False, separators=(",", ":"))
    # Two surrogates that make a character are none alone.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Response(text, 422, media_type="application/json")


def has_odd_text(body: bytes | None) -> bool:
    """Whether the body is a note whose text not every database can store."""
    try:
        match json.loads(body or b""):
            case {"text": str(text)}:
                return re.search("[\0\ud800-\udfff]", text) is not None
    except (ValueError, RecursionError):
        pass
    return False


@pytest.fixture(scope="module")
def example() -> Iterator[TestClient]:
    """A client of the improved example."""
    with TestClient(better) as client:
        yield client


def compare(
    pair: Pair,
    example: TestClient,
    method: str,
    path: str,
    body: bytes | None,
    content_type: str | None,
) -> None:
    """Sends a request to both. AssertionError unless the service's answer is right."""
    headers = {} if content_type is None else {"content-type": content_type}
    service, twin = (send(connection, method, path, body, headers) for connection in pair)
    assert service.status < 500
    failed = twin.status == 500
    if failed or (method == "POST" and twin.status in (200, 422) and has_odd_text(body)):
        answer = example.post(path, content=body, headers=headers)
        assert not failed or answer.status_code in (400, 422)
        chosen = {"content-type": answer.headers["content-type"]}
        twin = Answer(answer.status_code, answer.content, chosen)
    assert service.status == twin.status
    if method == "GET" and twin.status == 200:
        return  # the notes that both hold differ where the example stored what it should not
    if twin.status == 200:
        mine, theirs = known(service.json()), twin.json()
        assert isinstance(mine.pop("id"), int)
        theirs.pop("id")
        assert list(mine.items()) == list(theirs.items())
        return
    assert service.body == twin.body
    service.headers.pop("allow", None)
    twin.headers.pop("allow", None)
    assert service.headers == twin.headers


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"text":"\\u0000","completed":true}',
        b'{"text":"\\u0000","completed":true,"other":"\\ud800"}',
        b'{"text":"\\u0000"}',
        b'{"text":"\\u0000","completed":"maybe"}',
        b'{"text":"\\u0000","completed":NaN}',
        b'{"text":"\\u0000","completed":"\\ud800"}',
        b'{"text":"\\u0000","other":-Infinity}',
        b'{"text":"\\u0000\\ud800","completed":true}',
        b'{"text":"\\u0000\\ud800"}',
        b'{"text":"\\\\u0000","completed":true}',
        b'{"text":"a","completed":"\\u0000"}',
        b'{"text":"a","completed":true,"\\u0000":"\\u0000"}',
        b'{"text":"a","completed":true,"other":NaN}',
        b'{"text":"a","completed":1e999}',
        b'{"text":NaN,"completed":[{"a":Infinity}]}',
        b'{"text":"a","\\ud800":1,"\\udfff":2}',
        b'{"text":"\xed\xa0\x80","completed":true}',
        b'{"text":"\xed\xa0\x80","completed":null}',
        b'{"text":"\xed\xa0\x80\xed\xb0\x80a"}',
        b'{"text":"\xff","completed":true}',
        b"\xff",
        b"NaN",
        b'"\\ud800"',
        b'"\\u0000"',
        '{"text":"a","completed":true}'.encode("utf-16"),
        '{"text":"\\u0000"}'.encode("utf-16"),
    ],
)
def test_what_the_example_fails_on_is_told(
    pair: Pair, example: TestClient, body: bytes, content_type: str
) -> None:
    """NUL, lone surrogates, NaN and odd bytes are reported with the other errors."""
    compare(pair, example, "POST", "/notes/", body, content_type)


def test_random_requests_are_answered_alike(
    request: pytest.FixtureRequest, pair: Pair, example: TestClient
) -> None:
    """Any request has the example's answer, or a better one where the example fails."""
    # Most of what is sent never reaches a database.
    examples = 1250 if request.node.callspec.params["pair"] == "sqlite" else 100

    @settings(max_examples=examples)
    @given(method=methods, path=paths, body=bodies, content_type=content_types)
    def compare_random(
        method: str, path: str, body: bytes | None, content_type: str | None
    ) -> None:
        compare(pair, example, method, path, body, content_type)

    compare_random()


@settings(max_examples=300)
@given(note=valid)
def test_what_was_acknowledged_is_stored(
    pair: Pair,
    note: dict[str, object],
) -> None:
    """An acknowledged note is in the list, the same to the character."""
    body = json.dumps(note).encode()
    answer = send(pair.service, "POST", "/notes/", body, {"content-type": "application/json"})
    if "\0" in str(note["text"]):
        assert answer.status == 422
        return
    assert answer.status == 200
    stored = known(answer.json())
    assert stored == {"id": stored["id"], **note}
    listed = send(pair.service, "GET", f"/notes/?after={stored['id'] - 1}").json()
    assert known(listed) == [stored]
