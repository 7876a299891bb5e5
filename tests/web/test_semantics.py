"""What headers mean by RFC 9110."""

import httpx2
import pytest

NOTE = {"text": "a", "completed": False}


def test_writes_say_of_what_their_tag_is(service: httpx2.Client) -> None:
    """`Content-Location` is where the body and the tag of a write are those of a `GET`."""
    path = f"/notes/{service.post('/notes/', json=NOTE).json()['id']}"
    answers = [
        service.post("/notes/", json=NOTE, headers={"idempotency-key": "a"}),
        service.post("/notes/", json=NOTE, headers={"idempotency-key": "a"}),
        service.post("/notes/", json=NOTE),
        service.put(path, json=NOTE | {"other": 1}),
        service.patch(path, json={"text": "b"}),
    ]
    for written in answers[:3] + answers[-1:]:
        read = service.get(written.headers["content-location"])
        assert (written.content, written.headers["etag"]) == (read.content, read.headers["etag"])
    assert answers[3].headers["content-location"] == path
    assert "content-location" not in service.post("/notes/batch", json=[NOTE]).headers


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "GZIP"])
def test_encoded_bodies_are_refused(service: httpx2.Client, coding: str) -> None:
    """A body with a Content-Encoding is a 415 that says what is accepted, and nothing is stored."""
    headers = {"content-encoding": coding}
    for method, path in (("POST", "/notes/"), ("POST", "/notes/batch"), ("PUT", "/notes/1")):
        answer = service.request(method, path, json=NOTE, headers=headers)
        assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
        assert answer.json() == {"detail": "Unsupported Media Type"}
    assert service.get("/notes/").json() == []


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_checks_are_never_406(service: httpx2.Client, method: str, path: str) -> None:
    """A health check answers, whatever codings are accepted; other paths are a 406."""
    headers = {"accept-encoding": "identity;q=0"}
    assert service.request(method, path, headers=headers).status_code == 200
    assert service.request(method, "/notes/", headers=headers).status_code == 406
