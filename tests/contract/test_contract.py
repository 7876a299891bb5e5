"""The contract row by row, on the service and on the FastAPI example at once."""

import json
from typing import Any

import httpx2
import orjson
import pytest

from benchmarks.fastapi_twin import app as twin_app
from service.app import document
from tests.contract.conftest import Pair
from tests.support.notes import MORE, known
from tests.support.raw import Answer, send
from tests.web.test_long_json import LISTS, REFUSED

JSON = {"content-type": "application/json"}


def without_more(answer: Answer) -> Answer:
    """An answer without the fields of notes that the example doesn't have."""
    if not MORE or answer.status != 200:
        return answer
    return answer._replace(body=orjson.dumps(known(answer.json())))


def ask(
    pair: Pair,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """The answer of both, which must be the same but for the id of a new note."""
    answers = [without_more(send(one, method, path, body, headers)) for one in pair]
    if method == "POST" and answers[0].status == answers[1].status == 200:
        ids = [answer.json()["id"] for answer in answers]
        assert answers[0].body == answers[1].body.replace(
            b'{"id":%d,' % ids[1], b'{"id":%d,' % ids[0], 1
        )
        return answers[0]
    assert answers[0] == answers[1]
    return answers[0]


def post(pair: Pair, body: bytes, content_type: str = "application/json") -> Answer:
    return ask(pair, "POST", "/notes/", body, {"content-type": content_type})


def error(type: str, *loc: str | int, msg: str, **rest: object) -> dict[str, object]:  # noqa: A002
    return {"type": type, "loc": list(loc), "msg": msg, **rest}


def test_created_notes_are_listed_in_order(service: httpx2.Client) -> None:
    """Created notes are listed with rising ids, and with their keys in order."""
    texts = ["first", "", "naïve ☃ 😀 \u2028", '"\\/\b\f\n\r\t\x1f\x7f', "x" * 100_000]
    for number, text in enumerate(texts):
        created = service.post("/notes/", json={"text": text, "completed": number % 2 == 0})
        assert created.status_code == 200
        assert list(known(created.json()).items()) == [
            ("id", number + 1),
            ("text", text),
            ("completed", number % 2 == 0),
        ]
    listed = service.get("/notes/")
    assert listed.headers["content-type"] == "application/json"
    assert [list(known(note)) for note in listed.json()] == [["id", "text", "completed"]] * len(
        texts
    )
    assert [note["text"] for note in listed.json()] == texts
    assert [note["id"] for note in listed.json()] == [1, 2, 3, 4, 5]


def test_an_empty_list_is_an_empty_array(service: httpx2.Client) -> None:
    """A table without notes lists as `[]`."""
    assert service.get("/notes/").content == b"[]"


def test_bodies_are_compact(pair: Pair) -> None:
    """JSON stands without spaces and with Unicode unescaped, to the byte as the example's."""
    answer = post(pair, '{"completed": "on", "text": "é\\n\\u0001\\u007f\\u00e9/"}'.encode())
    end = b'"text":"\xc3\xa9\\n\\u0001\x7f\xc3\xa9/","completed":true}'
    assert answer.body.endswith(end)
    # Other tests may have used up ids of one of the two.
    for connection in pair:
        listing = without_more(send(connection, "GET", "/notes/"))
        assert listing.headers == {"content-type": "application/json"}
        assert listing.body.endswith(end + b"]")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "PURGE"])
@pytest.mark.parametrize("query", ["", "?a=1&b=%C3%A9&c=/", "?"])
def test_the_missing_slash_is_redirected(pair: Pair, method: str, query: str) -> None:
    """`/notes` answers 307 to the absolute `/notes/` and keeps the query."""
    answer = ask(pair, method, f"/notes{query}")
    assert answer.status == 307
    assert answer.headers["location"] == f"/notes/{query.rstrip('?')}"


@pytest.mark.parametrize("path", ["/nope", "//notes/", "/notes//", "/Notes/", "/notes/%00", "/é"])
def test_unknown_paths_are_404(pair: Pair, path: str) -> None:
    """Any other path answers 404 with a detail."""
    answer = ask(pair, "GET", path.encode().decode("latin-1") if path.isascii() else "/%C3%A9")
    assert (answer.status, answer.body) == (404, b'{"detail":"Not Found"}')


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "PURGE"])
def test_wrong_methods_are_405(pair: Pair, method: str) -> None:
    """A wrong method answers 405 as the example does, and `Allow` names all the right ones."""
    service, twin = (send(connection, method, "/notes/") for connection in pair)
    assert (service.status, service.body) == (twin.status, twin.body)
    assert (service.status, service.json()) == (405, {"detail": "Method Not Allowed"})
    assert service.headers["allow"] == "GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize("value", ["1", "0", "1.0", "0.0", "-0.0", "1e0", "true", "false"])
def test_numbers_are_booleans(pair: Pair, value: str) -> None:
    """`completed` takes JSON's booleans and the numbers that equal 0 and 1."""
    answer = post(pair, b'{"text":"","completed":%s}' % value.encode())
    assert answer.json()["completed"] is bool(json.loads(value))


@pytest.mark.parametrize("word", ["1", "on", "t", "true", "y", "yes", "0", "off", "f", "false"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_words_are_booleans(pair: Pair, word: str, case: type[str]) -> None:
    """The words that pydantic takes for a boolean are accepted, in any case."""
    answer = post(pair, b'{"text":"","completed":"%s"}' % case(word).encode())
    assert answer.json()["completed"] is (word in ("1", "on", "t", "true", "y", "yes"))


BOOL_PARSING = "Input should be a valid boolean, unable to interpret input"


@pytest.mark.parametrize(
    "value",
    ['"maybe"', '""', '" true"', '"\u017f"', "2", "-1", "2.0", "-1.0", str(2**63 - 1)],
)
def test_unreadable_booleans(pair: Pair, value: str) -> None:
    """A text or number that means no boolean is a `bool_parsing` error."""
    answer = post(pair, b'{"text":"","completed":%s}' % value.encode())
    assert answer.status == 422
    assert answer.json()["detail"] == [
        error("bool_parsing", "body", "completed", msg=BOOL_PARSING, input=json.loads(value))
    ]


@pytest.mark.parametrize(
    "value", ["1.5", "[]", "{}", "null", "1e-320", str(2**63), "-9223372036854775808.0", "[[1]]"]
)
def test_other_types_are_no_booleans(pair: Pair, value: str) -> None:
    """A value of another type is a `bool_type` error."""
    answer = post(pair, b'{"text":"","completed":%s}' % value.encode())
    assert answer.status == 422
    assert answer.json()["detail"] == [
        error(
            "bool_type",
            "body",
            "completed",
            msg="Input should be a valid boolean",
            input=json.loads(value),
        )
    ]


@pytest.mark.parametrize("value", ["null", "1", "1.5", "true", "[]", '{"a":1}'])
def test_other_types_are_no_text(pair: Pair, value: str) -> None:
    """A value of another type is a `string_type` error."""
    answer = post(pair, b'{"text":%s,"completed":true}' % value.encode())
    assert answer.status == 422
    assert answer.json()["detail"] == [
        error(
            "string_type",
            "body",
            "text",
            msg="Input should be a valid string",
            input=json.loads(value),
        )
    ]


def test_missing_fields(pair: Pair) -> None:
    """A missing field is named, with the whole body as its input, in the order of the fields."""
    assert post(pair, b'{"completed":"maybe","x":1}').json()["detail"] == [
        error(
            "missing",
            "body",
            "text",
            msg="Field required",
            input={"completed": "maybe", "x": 1},
        ),
        error("bool_parsing", "body", "completed", msg=BOOL_PARSING, input="maybe"),
    ]
    assert [e["loc"] for e in post(pair, b"{}").json()["detail"]] == [
        ["body", "text"],
        ["body", "completed"],
    ]


@pytest.mark.parametrize(
    "body",
    [b"{", b" ", b'{"text":"a"} x', b'{"text":"a\nb"}', b"[1,]", b"\xef\xbb\xbf", b"nul", b'"'],
)
def test_broken_json(pair: Pair, body: bytes) -> None:
    """JSON that doesn't parse is a `json_invalid` error with the parser's place and message."""
    answer = post(pair, body)
    assert answer.status == 422
    (detail,) = answer.json()["detail"]
    assert detail["type"] == "json_invalid"
    assert detail["loc"][0] == "body"
    assert detail["input"] == {}
    assert detail["ctx"]["error"]


@pytest.mark.parametrize("headers", [{}, JSON, {"content-type": "text/plain"}])
def test_an_empty_body_is_missing(pair: Pair, headers: dict[str, str]) -> None:
    """No body at all is a `missing` error of the body."""
    for body in (b"", None):
        answer = ask(pair, "POST", "/notes/", body, headers)
        assert answer.json()["detail"] == [
            error("missing", "body", msg="Field required", input=None)
        ]


NO_OBJECT = "Input should be a valid dictionary or object to extract fields from"


@pytest.mark.parametrize("body", ["null", "[]", '"text"', "1", "1.5", "true", '[{"text":"a"}]'])
def test_a_body_that_is_no_object(pair: Pair, body: str) -> None:
    """JSON of another type than an object is a `model_attributes_type` error."""
    answer = post(pair, body.encode())
    assert answer.status == 422
    assert answer.json()["detail"] == [
        error("model_attributes_type", "body", msg=NO_OBJECT, input=json.loads(body))
    ]


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "text/json", "application/x-www-form-urlencoded", "application/jsonx", "a"],
)
def test_other_content_types(pair: Pair, content_type: str) -> None:
    """JSON under another content type is taken for a text."""
    text = '{"text":"é \x00","completed":true}'
    answer = post(pair, text.encode(), content_type)
    assert answer.json()["detail"] == [
        error("model_attributes_type", "body", msg=NO_OBJECT, input=text)
    ]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        "application/json;charset=latin-1",
        "APPLICATION/Json",
        "application/vnd.api+json",
        "application/+json",
        "application/json;",
    ],
)
def test_content_types_of_json(pair: Pair, content_type: str) -> None:
    """Every content type of JSON is accepted, with any parameter."""
    assert post(pair, b'{"text":"a","completed":true}', content_type).status == 200


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"])
def test_encodings_of_json(pair: Pair, encoding: str) -> None:
    """UTF-8 with a byte order mark, UTF-16 and UTF-32 are accepted."""
    assert post(pair, '{"text":"é","completed":true}'.encode(encoding)).json()["text"] == "é"


@pytest.mark.parametrize(
    "body", [b"\xff", b'{"text":"\xff"}', b"1" * 5000, b"[" * 25_000, b'{"a":' * 25_000]
)
def test_bodies_past_parsing(pair: Pair, body: bytes) -> None:
    """A body that the parser can't read answers 400."""
    answer = post(pair, body)
    assert answer.status == 400
    assert answer.json() == {"detail": "There was an error parsing the body"}


def test_extra_and_repeated_keys(pair: Pair) -> None:
    """Extra keys are dropped. Of a repeated key the last one wins."""
    body = (
        b'{"text":1,"id":7,"x":NaN,"y":"\\ud800","z":"\\u0000",'
        b'"completed":2,"completed":1,"text":"b"}'
    )
    note = post(pair, body).json()
    assert (note["text"], note["completed"]) == ("b", True)
    assert "x" not in note


@pytest.mark.parametrize(
    ("body", "types", "inputs"),
    [
        (b'{"text":NaN,"completed":1}', ["string_type"], [None]),
        (b'{"text":"a","completed":Infinity}', ["bool_type"], [None]),
        (b'{"text":"a","completed":-1e999}', ["bool_type"], [None]),
        (b'{"completed":[NaN]}', ["missing", "bool_type"], [{"completed": [None]}, [None]]),
        (b"NaN", ["model_attributes_type"], [None]),
        (b'{"text":"a\\ud800b","completed":1}', ["string_unicode"], ["a\ufffdb"]),
        (b'{"text":"a","completed":"\\udfff"}', ["string_unicode"], ["\ufffd"]),
        (b'{"\\ud800":1}', ["missing", "missing"], [{"\ufffd": 1}, {"\ufffd": 1}]),
    ],
)
def test_what_the_example_fails_on(
    pair: Pair, body: bytes, types: list[str], inputs: list[object]
) -> None:
    """NaN, the infinities and lone surrogates are 422 here, where the example answers 500."""
    service, twin = (send(connection, "POST", "/notes/", body, JSON) for connection in pair)
    assert (service.status, twin.status) == (422, 500)
    assert [detail["type"] for detail in service.json()["detail"]] == types
    assert [detail["input"] for detail in service.json()["detail"]] == inputs


def test_nul_is_refused_everywhere(service: httpx2.Client) -> None:
    """NUL in a text is 422 on every database, and nothing is stored."""
    answer = service.post("/notes/", json={"text": "a\0b", "completed": True})
    assert answer.status_code == 422
    assert answer.json()["detail"] == [
        error(
            "string_nul",
            "body",
            "text",
            msg="Input should be a valid string without NUL characters",
            input="a\0b",
        )
    ]
    assert service.get("/notes/").json() == []


def test_head_is_get_without_a_body(service: httpx2.Client) -> None:
    """`HEAD` answers as `GET` does, with the same headers and no body."""
    service.post("/notes/", json={"text": "a", "completed": True})
    head, get = service.head("/notes/"), service.get("/notes/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize("depth", [*range(50, 1200, 50), 3000])
def test_nesting_is_never_an_error_of_the_server(pair: Pair, depth: int) -> None:
    """JSON nested to any depth is a 4xx, on both sides of the parser's limit."""
    body = b'{"text":' + b"[" * depth + b"]" * depth + b"}"
    answer = send(pair.service, "POST", "/notes/", body, JSON)
    assert answer.status in (400, 422)
    assert answer.body.startswith(b'{"detail":')


@pytest.mark.parametrize("announced", [True, False])
def test_bodies_over_the_limit(service: httpx2.Client, announced: bool) -> None:
    """A body over MAX_BODY_BYTES is 413, whether its length is announced or not."""
    body = b'{"text":"%s","completed":true}' % (b"a" * 1_048_576)
    answer = service.post("/notes/", content=body if announced else iter([body]), headers=JSON)
    assert (answer.status_code, answer.json()) == (413, {"detail": "Content Too Large"})
    assert service.get("/notes/").json() == []


def test_a_length_with_leading_zeros(pair: Pair) -> None:
    """A Content-Length may have any number of zeros in front."""
    body = b'{"text":"a","completed":true}'
    length = {"content-length": "0" * 5000 + str(len(body))}
    for connection in pair:
        connection.request("POST", "/notes/", body, JSON | length)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["text"]) == (200, "a")


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/notes/", "GET, HEAD, OPTIONS, POST"),
        ("/notes/1", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
    ],
)
def test_options_names_the_methods(service: httpx2.Client, path: str, allow: str) -> None:
    """`OPTIONS` answers 204 with every method of the path in `Allow`."""
    answer = service.options(path)
    assert (answer.status_code, answer.content, answer.headers["allow"]) == (204, b"", allow)


def holds(value: Any, other: Any) -> bool:
    """Whether the value has all names and values of the other."""
    if isinstance(other, dict):
        return isinstance(value, dict) and all(
            key in value and holds(value[key], other[key]) for key in other
        )
    if isinstance(other, list):
        return isinstance(value, list) and sorted(map(str, value)) == sorted(map(str, other))
    return bool(value == other)


def test_the_document_holds_the_examples() -> None:
    """The document has everything that client generators find in the example's."""
    # FastAPI keeps the document, so it is not changed here.
    example = {name: part for name, part in twin_app.openapi().items() if name != "info"}
    assert holds(document, example)
    for name, schema in example["components"]["schemas"].items():
        mine = document["components"]["schemas"][name]
        shown = [field for field in mine["properties"] if field not in MORE]
        assert shown == list(schema["properties"])
        assert set(mine.get("required", [])) == set(schema.get("required", []))


@pytest.mark.parametrize("coding", ["", "identity", "Identity"])
def test_bodies_that_are_not_encoded_are_read(pair: Pair, coding: str) -> None:
    """A Content-Encoding that stands for none is taken, as by the example."""
    headers = {"content-type": "application/json", "content-encoding": coding}
    body = b'{"text":"a","completed":true}'
    assert [send(one, "POST", "/notes/", body, headers).status for one in pair] == [200, 200]


ANSWERED = {
    name: body for name, (body, _) in REFUSED.items() if name not in ("NaN", "surrogates")
} | {
    "deep and stored": b'{"text":"a","completed":true,"x":%b}' % LISTS,
    "broken at the end": b'{"text":"a","completed":true,"x":%b' % LISTS,
    "too deep": b'{"x":%b}' % (b"[" * 25_000),
    "a text, not JSON": b"[1],{}" * 100_000,
}


@pytest.mark.parametrize(("name", "body"), ANSWERED.items(), ids=ANSWERED)
def test_fewer_are_answered_as_by_the_example(pair: Pair, name: str, body: bytes) -> None:
    """A body with many values in it is stored or refused as by the example."""
    headers = {"content-type": "text/plain"} if "not JSON" in name else JSON
    service, twin = (send(one, "POST", "/notes/", body, headers) for one in pair)
    assert service.status == twin.status
    if twin.status != 200:
        assert service.body == twin.body
