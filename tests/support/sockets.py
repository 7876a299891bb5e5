"""Requests on bare sockets: byte by byte, without end, one behind the other, never read."""

import socket
import time
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit


def connect(url: str, receive_buffer: int = 0) -> socket.socket:
    """Opens a connection, which may have a small buffer for answers."""
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(20)
    client.connect((urlsplit(url).hostname, urlsplit(url).port))
    return client


def head(method: str, path: str, *fields: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", "")
    return "\r\n".join(lines).encode("latin-1")


def json_request(method: str, path: str, body: bytes, *fields: str) -> bytes:
    kind = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    return head(method, path, *fields, *kind) + body


def read_answer(client: socket.socket, method: str = "GET") -> tuple[HTTPResponse, bytes]:
    """An answer and its body. http.client's exceptions if it is only a part."""
    answer = HTTPResponse(client, method=method)
    answer.begin()
    return answer, answer.read()


def read_slowly(client: socket.socket, size: int, pause: float) -> bytes:
    """The body of an answer, of which so many bytes are taken at a time."""
    answer = HTTPResponse(client)
    answer.begin()
    body = b""
    while piece := answer.read(size):
        body += piece
        time.sleep(pause)  # it is what is tested
    return body


def read_all(client: socket.socket) -> bytes:
    """All bytes until the server ends the connection."""
    return b"".join(iter(lambda: client.recv(1_000_000), b""))


def is_closed(client: socket.socket) -> bool:
    """Whether the server ends the connection in silence. TimeoutError if it waits on."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def unread(port: int) -> int:
    """Counts the connections to the port with bytes that the server hasn't read."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        row[1].endswith(f":{port:04X}") and row[3] != "0A" and not row[4].endswith(":00000000")
        for row in rows
    )
