"""uvicorn's HTTP protocol on httptools, with one system call for a response instead of two.

uvicorn writes an answer's head and its body apart, and uvloop sends each at once; at some
thousand requests a second that is a tenth of all the time. Used as
`uvicorn --http service.protocol:Protocol`.
"""

import asyncio
import socket
from collections.abc import Sized
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import settings, shutdown

# A client that connected before the stop has this many seconds to send its request.
LAST_CALL = 1.0

shutdown.install()

# More than this is not held back: writing it shows uvicorn that the client reads too slowly.
MAX_HELD_BYTES = 65_536

# Fields of a head: each takes many times the memory of its bytes.
MAX_FIELDS = 200

# A head ends so. Some thirty of the shortest requests fit into this many bytes.
HEAD_END = b"\r\n\r\n"
LITTLE = 512


class Corked:
    """A transport that sends together what is written in one turn of the event loop."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.call_soon = asyncio.get_running_loop().call_soon
        self.is_closing = transport.is_closing
        self.held: list[bytes] = []
        self.size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        if not self.held:
            self.call_soon(self.flush)
        self.held.append(data)
        self.size += len(data)
        if self.size > MAX_HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.held and not self.is_closing():
            self.transport.write(b"".join(self.held))
        self.held.clear()
        self.size = 0

    def close(self) -> None:
        self.flush()
        self.transport.close()


class Flow(FlowControl):
    """Reads no more while bytes wait that a client has sent without waiting for answers."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self.waiting = waiting

    def resume_reading(self) -> None:
        if not self.waiting:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """Also bounds the time for which a client may send nothing, or not take what it asked for.

    Of pipelined requests few are parsed before those in front of them are answered, as a request
    takes many times the memory of its bytes. An Upgrade is ignored (RFC 9110, section 7.8).
    """

    broken = False
    head_timer: asyncio.TimerHandle | None = None
    in_head = False
    in_tail = False
    head_size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(Corked(transport))  # type: ignore[arg-type]
        self.held = bytearray()
        self.flow = Flow(self.transport, self.held)
        self.extensions: Any = {"service.abort": self.transport.abort}
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(settings.REQUEST_TIMEOUT * 1000)
            connection = transport.get_extra_info("socket")
            with suppress(OSError):  # no TCP
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
                # The kernel asks for more when it has this much left to send, not when a third of
                # some megabytes is free, which a slow client can't take within its time.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_HELD_BYTES)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting_for_head()
        self.held.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._is_answering() or (len(data) > LITTLE and _piece(data) < len(data)):
            self.held += data
        else:
            self._parse(data)
        if self.held:
            self._parse_held()
        idle = self.cycle is None or self.cycle.response_complete
        if idle and not (self.head_timer or self.timeout_keep_alive_task):
            self._wait_for_head()

    def _is_answering(self) -> bool:
        """Whether nothing may be parsed until an answer has gone out."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return not cycle.more_body or bool(self.pipeline) or self.broken

    def _parse_held(self) -> None:
        while self.held and not self._is_answering():
            size = _piece(self.held)
            piece = bytes(self.held[:size])
            del self.held[:size]
            self.flow.resume_reading()
            self._parse(piece)
        if self.held:
            self.flow.pause_reading()

    def _parse(self, data: bytes) -> None:
        if self.in_head or self.in_tail:
            self.head_size += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.held[:0] = data[upgrade.args[0] :]
            self._ignore_upgrade()
        except httptools.HttpParserError:
            self._refuse()
        if (self.in_head or self.in_tail) and (
            self.head_size > MAX_HELD_BYTES or len(self.headers) > MAX_FIELDS
        ):
            self.held.clear()
            self.transport.close()

    def _should_upgrade(self) -> bool:
        # uvicorn makes no request of such a head; `_ignore_upgrade` does.
        return True

    def _ignore_upgrade(self) -> None:
        """Parses the head again without the field; the parser takes no body behind one that has it.

        Method, target, names and values are those that the parser found: none holds a line's end.
        """
        method, version = self.scope["method"], self.scope["http_version"]
        if method == "CONNECT":
            self._refuse()
            return
        lines = [b"%b %b HTTP/%b" % (method.encode(), self.url, version.encode())]
        fields = self.scope["headers"]
        lines += [b"%b: %b" % field for field in fields if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"\r\n".join(lines) + HEAD_END)

    def _refuse(self) -> None:
        """Answers what is no HTTP with a 400, behind the answers to the requests before it."""
        self.held.clear()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._answer_400()
        elif not cycle.more_body:
            self.broken = True
        # From here on it is the body of the request itself that is broken.
        elif self.pipeline:
            self.pipeline.popleft()
            self.broken = True
        elif cycle.response_started:
            cycle.keep_alive = False
            self.broken = True
        else:
            self._answer_400()

    def _answer_400(self) -> None:
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        self.send_400_response(message)

    def on_response_complete(self) -> None:
        if len(self.tasks) == 1:
            # Nobody else is served just now; with many, writing all at once takes less time.
            self.transport.flush()  # type: ignore[attr-defined]
        if self.broken and not self.pipeline:
            self._answer_400()
        if not self.in_head and self.cycle.response_complete:
            # Else an idle connection would keep its last head, which may be large.
            self.url = b""
            self.scope = self.cycle.scope = {}  # type: ignore[typeddict-item]
        super().on_response_complete()
        if self.held and not self.transport.is_closing():
            self._parse_held()
        if self.in_head and self.cycle.response_complete:
            # Part of the next head has come already.
            self._unset_keepalive_if_required()
            self._wait_for_head()

    def on_message_begin(self) -> None:
        self.in_head = True
        self.head_size = 0
        super().on_message_begin()
        self.scope["extensions"] = self.extensions

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_FIELDS:
            raise ValueError("too many fields")
        self.in_head = False
        if self.head_timer is not None:
            self._stop_waiting_for_head()
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        super().on_headers_complete()
        # What follows the body is no header (RFC 9110, section 6.5.1); nobody reads it.
        self.headers = []

    def on_chunk_header(self) -> None:
        # Until some of the chunk has come it may be the last one, which trailers follow; they are
        # bounded as a head is.
        self.in_tail = True
        self.head_size = 0

    def on_body(self, body: bytes) -> None:
        self.in_tail = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.in_tail = False
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            # The end of a body that nobody wanted; from here on the connection is idle.
            self._stop_waiting_for_head()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def shutdown(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and (self.cycle is None or self.in_head):
            # Its request is on the way, and would be reset.
            self.loop.call_later(LAST_CALL, super().shutdown)
        else:
            super().shutdown()

    def _wait_for_head(self) -> None:
        self.head_timer = self.loop.call_later(settings.REQUEST_TIMEOUT, self.transport.close)

    def _stop_waiting_for_head(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None


def _piece(data: bytes | bytearray) -> int:
    """How many of the bytes may be parsed at once, as they hold few heads."""
    # A search for one byte takes a tenth of the time, and large bodies seldom hold it.
    line = data.find(b"\r", LITTLE)
    end = -1 if line < 0 else data.find(HEAD_END, line)
    return len(data) if end < 0 else end + len(HEAD_END)
