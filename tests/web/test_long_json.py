"""JSON of very many values is a 413, a long query a 414, and a large 422 is written in slices."""

import asyncio
import json
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from service.schemas import slices
from service.web import json_writer, requests
from tests.support.documents import documents
from tests.support.turning import turns_while_refused

JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson"}
NOTE = b'{"text":"a","completed":true}'

LISTS = b"[%b]" % b",".join([b"[" * 900 + b"]" * 900] * 20)
COMMAS = b'[{\\",\\\\' * 120_000
TOO_MANY = {
    "deep lists": (JSON, b"[%b]" % b",".join([LISTS] * 2)),
    "numbers": (JSON, b'{"text":"a","completed":true,"x":[%b1]}' % (b"1," * 30_000)),
    "texts": (JSON, b'["\\"",%b1]' % (b'"",' * 30_000)),
    "keys": (JSON, b"{%b}" % b",".join(b'"%d":"\\\\"' % number for number in range(30_001))),
    "objects beside a text": (JSON, b'["%b",%b1]' % (COMMAS, b"{}," * 15_001)),
    "never closed": (JSON, b"[" * 100_000),
    "UTF-16": (JSON, ("[%s1]" % ("1," * 30_000)).encode("utf-16")),
    "a line": (LINES, NOTE + b"\n[%b1]" % (b"1," * 30_000)),
    "many lines": (LINES, b"[%b1]\n" % (b"1," * 100) * 300),
}


@pytest.mark.parametrize(("headers", "body"), TOO_MANY.values(), ids=TOO_MANY)
def test_very_many_values_are_refused(
    service: httpx2.Client, headers: dict[str, str], body: bytes
) -> None:
    """They are a 413 before they are parsed."""
    paths = [("POST", "/notes/batch")]
    if headers is JSON:
        paths += [("POST", "/notes/"), ("PUT", "/notes/1"), ("PATCH", "/notes/1")]
    for method, path in paths:
        answer = service.request(method, path, content=body, headers=headers)
        assert answer.status_code == 413
        assert answer.json() == {"detail": "The body has more than 30,000 JSON values"}


def marks(value: Any) -> int:
    """The commas and opening brackets in its JSON, outside of strings."""
    if not isinstance(value, dict | list):
        return 0
    items = list(value.values() if isinstance(value, dict) else value)
    return max(1, len(items)) + sum(map(marks, items))


@settings(max_examples=500)
@given(body=documents, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-be"]))
def test_values_are_counted(body: bytes, encoding: str) -> None:
    """The bound goes by the values of any document, in each encoding of JSON."""
    count = marks(json.loads(body))
    body = body.decode("utf-8", "surrogatepass").encode(encoding, "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "MAX_VALUES", count)
        requests.parse(body, "application/json")
        patch.setattr(requests, "MAX_VALUES", count - 1)
        with pytest.raises(HTTPException) as refused:
            requests.parse(body, "application/json")
    assert refused.value.status_code == 413


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_text_may_have_any_characters(service: httpx2.Client, encoding: str) -> None:
    """Commas, brackets and escapes in a long text are no values."""
    text = ',[{"\\\u2c5b' * 40_000
    body = json.dumps({"text": text, "completed": True}, ensure_ascii=False).encode(encoding)
    answer = service.post("/notes/", content=body, headers=JSON)
    assert answer.status_code == 200
    assert answer.json()["text"] == text


@pytest.mark.parametrize(("headers", "mark"), [(JSON, b","), (LINES, b"\n")], ids=["JSON", "lines"])
def test_the_largest_batch_is_stored(
    service: httpx2.Client, headers: dict[str, str], mark: bytes
) -> None:
    """1,000 notes with long texts, and with 20 further values in each, are few enough."""
    further = b",".join(b'"%d":"b"' % number for number in range(20))
    note = b'{"text":"%b","completed":true,%b}' % (b",[{" * 250, further)
    batch = mark.join([note] * 1000)
    content = b"[%b]" % batch if headers is JSON else batch
    headers = headers | {"prefer": "return=minimal"}
    answer = service.post("/notes/batch", content=content, headers=headers)
    assert answer.status_code == 204


# Each with the number of values in it.
REFUSED = {
    "no note": (LISTS, 20 * 900),
    "missing": (b'{"completed":true,"x":%b}' % LISTS, 20 * 900),
    "wrong types": (b'{"text":%b,"completed":1}' % LISTS, 20 * 900),
    "long numbers": (b'{"x":[%b]}' % b",".join([b"1" * 4300] * 20), 20),
    "NaN": (b'{"x":[%b1]}' % (b"NaN," * 20_000), 20_000),
    "keys": (b"{%b}" % b",".join(b'"%d":1' % number for number in range(9_000)), 9_000),
    # It is shown in two errors, by 4,096 characters.
    "surrogates": (b'{"x":"%b"}' % (b"\\ud800" * 170_000), 2 * 170_000 // 4096),
}


@pytest.mark.parametrize(("body", "values"), REFUSED.values(), ids=REFUSED)
def test_others_go_on_while_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, body: bytes, values: int
) -> None:
    """The event loop turns at least once for each value in a 422."""
    monkeypatch.setattr(slices, "SLICE_SECONDS", 0)
    monkeypatch.setattr(slices, "SHORT_SECONDS", 0)
    assert turns_while_refused("/notes/", body, JSON) >= values


@pytest.mark.parametrize("before", ["", "a"])
def test_two_surrogates_stay_together(before: str) -> None:
    """They are one character, wherever a slice ends. One alone is U+FFFD."""
    text = before + "\ud83d\ude00" * 10_000 + "\ud800"
    expected = before + "\U0001f600" * 10_000 + "\ufffd"
    assert asyncio.run(json_writer.encode(text)).decode() == f'"{expected}"'


def test_many_parameters_are_refused(service: httpx2.Client) -> None:
    """More than 1,000 parameters are a 414; before, the example's or the option's answer."""
    few = "&".join(["a=1"] * 998 + ["limit=1", "after=9007199254740991"])
    assert service.get(f"/notes/?{few}").json() == []
    answer = service.get(f"/notes/?{few}&a")
    assert answer.status_code == 414
    assert answer.json() == {"detail": "The query has more than 1,000 parameters"}
