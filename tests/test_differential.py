"""Thousands of random requests, sent to the service and to the FastAPI example alike."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Pair
from tests.raw import send

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.0**63, 1e308, 2**63, -(2**63), 2**63 - 1])
    | st.text(st.characters())
    | st.sampled_from(["true", "False", "YES", "n", "oN", "off", "1", "0", "maybe", " 1", "\u212a"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
notes = st.fixed_dictionaries(
    {}, optional={"text": st.text() | values, "completed": st.booleans() | values, "id": values}
)
valid = st.fixed_dictionaries({"text": st.text(), "completed": st.booleans()})
documents = st.builds(
    lambda value, ascii: json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass"),  # noqa: A006
    valid | notes | values,
    st.booleans(),
)


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


def fails_in_the_example(body: bytes) -> bool:
    """Whether the body is one of those that the example answers with a 500 of its own."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return True
    text = json.dumps(json.loads(body), ensure_ascii=False)
    surrogate = any("\ud800" <= character <= "\udfff" for character in text)
    return surrogate or "NaN" in text or "Infinity" in text or "\\u0000" in text


@settings(
    max_examples=2500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(method=methods, path=paths, body=bodies, content_type=content_types)
def test_random_requests_are_answered_alike(
    pair: Pair,
    method: str,
    path: str,
    body: bytes | None,
    content_type: str | None,
) -> None:
    """Any request has the example's answer, or a better one where the example fails."""
    headers = {} if content_type is None else {"content-type": content_type}
    service, twin = (send(connection, method, path, body, headers) for connection in pair)
    assert service.status < 500
    if twin.status == 500:
        assert service.status in (400, 422)
        assert fails_in_the_example(body or b"")
        return
    if service.status == 422 and twin.status == 200:  # NUL, which SQLite stores for the example
        assert service.json()["detail"][0]["type"] == "string_nul"
        return
    assert service.status == twin.status
    if method == "GET" and twin.status == 200:
        return  # the notes that both hold differ where the example stored what it should not
    if twin.status == 200:
        mine, theirs = service.json(), twin.json()
        assert isinstance(mine.pop("id"), int)
        theirs.pop("id")
        assert list(mine.items()) == list(theirs.items())
        return
    assert service.body == twin.body
    service.headers.pop("allow", None)
    twin.headers.pop("allow", None)
    assert service.headers == twin.headers


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
)
@given(note=valid)
def test_what_was_acknowledged_is_stored(
    pair: Pair,
    note: dict[str, object],
) -> None:
    """A note that was answered with 200 stands in the list, the same to the character."""
    body = json.dumps(note).encode()
    answer = send(pair.service, "POST", "/notes/", body, {"content-type": "application/json"})
    if "\0" in str(note["text"]):
        assert answer.status == 422
        return
    assert answer.status == 200
    assert answer.json() == {"id": answer.json()["id"], **note}
    assert send(pair.service, "GET", "/notes/").json()[-1] == answer.json()
