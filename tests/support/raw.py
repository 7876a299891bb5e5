"""Exact requests: no client library tidies their paths, headers or bodies."""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

HEADERS = ("allow", "content-type", "location", "retry-after", "www-authenticate")


class Answer(NamedTuple):
    """An answer as a client sees it, without the host of a Location."""

    status: int
    body: bytes
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def connect(url: str) -> Iterator[http.client.HTTPConnection]:
    """A kept-alive connection to the server."""
    host = urlsplit(url)
    assert host.hostname is not None
    connection = http.client.HTTPConnection(host.hostname, host.port, timeout=30)
    with closing(connection):
        yield connection


def send(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Sends one request and reads its answer."""
    connection.putrequest(method, path)
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("content-length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    chosen = {name: response.headers[name] for name in HEADERS if name in response.headers}
    if "location" in chosen:
        location = urlsplit(chosen["location"])
        assert (location.scheme, location.port) == ("http", connection.port)
        chosen["location"] = location._replace(scheme="", netloc="").geturl()
    answer = Answer(response.status, response.read(), chosen)
    if answer.status >= 500:
        connection.close()  # as uvicorn does on its side; the next request connects again
    return answer
