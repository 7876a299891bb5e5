"""uvicorn's HTTP protocol on httptools, with limits of time and memory for each client.

Use: `uvicorn --http service.protocol:Protocol`.
"""

import asyncio
import heapq
import math
import socket
from collections.abc import Sized
from contextlib import suppress
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import settings, shutdown
from service.descriptors import MAX_CONNECTIONS
from service.hosts import name_of
from service.one_write import MAX_BUFFERED_BYTES, BufferedTransport, Cycle, OldCycle

# At shutdown, a client that has connected may still send its first request for this time.
LAST_REQUEST_SECONDS = 1.0

shutdown.install(settings.DRAIN_SECONDS)

# How long, and how much, is still read from a client that was answered while it was sending.
# Closing at once would reset the connection, and the client could lose the answer (RFC 9112,
# section 9.6).
LINGER_SECONDS = 10.0
LINGER_BYTES = 16_000_000

# Fields of a head. A parsed field takes much more memory than its bytes.
MAX_FIELDS = 200

_said_full = False

HEAD_END = b"\r\n\r\n"
# Data of this size is parsed at once: it holds at most some thirty requests.
SMALL_BYTES = 512
# Of a body in chunks this much is parsed in one turn of the event loop: a chunk may be one byte.
SLICE_BYTES = 32_768


class Transport(BufferedTransport):
    """A transport that closes in stages if the client may be sending."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        # Whether the client may be sending more than was read.
        self.has_unread = False
        self.pending = bytearray()
        self.linger_timer: asyncio.TimerHandle | None = None
        self.discarded = 0

    def close(self) -> None:
        if self.linger_timer is not None:
            return
        if not (self.has_unread or self.pending) or self.is_closing():
            super().close()
            return
        self.flush()
        self.is_closing = lambda: True
        self.pending.clear()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.transport.resume_reading()
        seconds = min(LINGER_SECONDS, settings.REQUEST_TIMEOUT)
        loop = asyncio.get_running_loop()
        self.linger_timer = loop.call_later(seconds, self.transport.close)

    def discard(self, data: bytes) -> None:
        """Counts what a client sends after its answer."""
        self.discarded += len(data)
        if self.discarded > LINGER_BYTES:
            self.transport.close()

    def close_now(self) -> None:
        super().close()

    def end(self) -> None:
        if self.linger_timer is not None:
            self.linger_timer.cancel()


class Flow(FlowControl):
    """Reads no more from the socket while pipelined requests wait."""

    def __init__(self, transport: asyncio.Transport, pending: Sized) -> None:
        super().__init__(transport)
        self.pending = pending

    def resume_reading(self) -> None:
        if not self.pending:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """Limits the time that a client may send nothing, or receive nothing of its response.

    Only a few pipelined requests are parsed before earlier ones are answered: a parsed request
    takes much more memory than its bytes. Upgrade is ignored (RFC 9110, section 7.8).
    """

    transport: Transport  # type: ignore[assignment]
    malformed = False
    # How long the client has sent nothing or no whole head, and may: seconds since a time. It is
    # infinite while a request is under way.
    waits_since = math.inf
    waits_seconds = 0.0
    is_kept_alive = False
    # One timer for many requests: to make one for each would cost more.
    timer: asyncio.Handle | None = None
    timer_ends = 0.0
    in_head = False
    in_trailers = False
    in_chunks = False
    head_size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(Transport(transport))  # type: ignore[arg-type]
        if self.server is not None and self.server[1] is None:
            # A Unix socket's path is no part of a URL.
            self.server = None
        self.pending = self.transport.pending
        self.flow = Flow(self.transport, self.pending)  # type: ignore[arg-type]
        self.extensions: Any = {
            "service.abort": self.transport.abort,
            "service.unread": self.transport.get_write_buffer_size,
        }
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(settings.REQUEST_TIMEOUT * 1000)
            sock = transport.get_extra_info("socket")
            with suppress(OSError):  # not TCP
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
                # The kernel takes more data when this little is unsent. By default it waits until
                # a third of some megabytes is free, which a slow client can't read in time.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_BUFFERED_BYTES)
        self._wait(settings.REQUEST_TIMEOUT)
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            # It would keep all of this.
            self.timer.cancel()
        self.transport.end()
        self.pending.clear()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        """Closes the connections that are idle for longest, or this new one if none is idle."""
        global _said_full
        if not _said_full:
            _said_full = True
            self.logger.warning(
                "%d clients are connected. The oldest idle connections are closed from now on.",
                MAX_CONNECTIONS,
            )
        all_of_them = cast("set[Protocol]", self.connections)
        idle = [one for one in all_of_them if one is not self and one._is_idle()]
        # Some at once, as finding them takes a while.
        for one in heapq.nsmallest(1 + len(idle) // 64, idle, Protocol._idle_since) or [self]:
            self.connections.discard(one)
            one.transport.close_now()

    def _is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _idle_since(self) -> float:
        if self.transport.linger_timer is not None:
            return 0.0
        return self.waits_since

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open: a client that has sent all gets its answers.

        A stream without an end would hold its place until the next write fails.
        """
        self.transport.flush()
        if self._is_idle() or self.cycle.more_body or self.transport.is_closing():
            return False
        if "service.answered" in self.cycle.scope:
            return False
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        if self.transport.linger_timer is not None:
            self.transport.discard(data)
            return
        if self.is_kept_alive:
            self.waits_since = math.inf
        if self._is_answering() or (len(data) > SMALL_BYTES and _parsable_size(data) < len(data)):
            self.pending += data
        else:
            self._parse(data)
        if self.pending:
            self._parse_pending()
        if self.waits_since == math.inf and self._is_idle():
            self._wait(settings.REQUEST_TIMEOUT)

    def _is_answering(self) -> bool:
        """Whether parsing has to wait for the end of a response."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return not cycle.more_body or bool(self.pipeline) or self.malformed

    def _parse_pending(self) -> None:
        while self.pending and not self._is_answering():
            size = _parsable_size(self.pending)
            data = bytes(self.pending[:size])
            del self.pending[:size]
            self.flow.resume_reading()
            self._parse(data)
            if self.in_chunks and self.pending:
                self.loop.call_soon(self._parse_next_slice)
                break
        if self.pending:
            self.flow.pause_reading()

    def _parse_next_slice(self) -> None:
        if not self.transport.is_closing():
            self._parse_pending()

    def _parse(self, data: bytes) -> None:
        if self.in_head or self.in_trailers:
            self.head_size += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.pending[:0] = data[upgrade.args[0] :]
            self._ignore_upgrade()
        except httptools.HttpParserError:
            self._refuse()
        if (self.in_head or self.in_trailers) and (
            self.head_size > MAX_BUFFERED_BYTES or len(self.headers) > MAX_FIELDS
        ):
            self.pending.clear()
            self.transport.has_unread = True
            self.transport.close()

    def _should_upgrade(self) -> bool:
        # uvicorn then creates no request for this head; `_ignore_upgrade` does.
        return True

    def _ignore_upgrade(self) -> None:
        """Parses the head again without the field Upgrade, as the parser reads no body after it.

        The parser has validated all parts of the new head, so none contains a line break.
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
        """Answers invalid HTTP with a 400, after the responses to earlier requests."""
        self.pending.clear()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._answer_400()
        elif not cycle.more_body:
            self.malformed = True
        # In the next cases the body of the current request is invalid.
        elif self.pipeline:
            self.pipeline.popleft()
            self.malformed = True
        elif cycle.response_started:
            cycle.keep_alive = False
            self.malformed = True
        else:
            self._answer_400()

    def _answer_400(self) -> None:
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        self.transport.has_unread = True
        self.send_400_response(message)

    def on_response_complete(self) -> None:
        if len(self.tasks) == 1:
            # No other request is active. With many, one write for all costs less.
            self.transport.flush()
        if self.malformed and not self.pipeline:
            self._answer_400()
        if not self.in_head and self.cycle.response_complete:
            # An idle connection must not keep its last head, which may be large.
            self.url = b""
            self.scope = self.cycle.scope = {}  # type: ignore[typeddict-item]
        # uvicorn's method would make a timer for the next request.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._keep_alive()
        if self.pending:
            self._parse_pending()
        if self.in_head and self.cycle.response_complete:
            # Part of the next head has arrived.
            self._wait(settings.REQUEST_TIMEOUT)

    def on_message_begin(self) -> None:
        self.in_head = True
        self.head_size = 0
        super().on_message_begin()
        self.scope["extensions"] = self.extensions

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_FIELDS:
            raise ValueError("too many fields")
        self.in_head = False
        self.waits_since = math.inf
        self.is_kept_alive = False
        super().on_headers_complete()
        self.transport.has_unread = True
        if self.cycle is not None and self.cycle.scope is self.scope:
            # uvicorn has no parameter for the class.
            self.cycle.__class__ = Cycle
            if self.scope["http_version"] < "1.1":
                self.cycle.__class__ = OldCycle
                self.cycle.waiting_for_100_continue = False
        self._check_fields()
        # Trailers are not headers (RFC 9110, section 6.5.1). They go into this list, unread.
        self.headers = []

    def _check_fields(self) -> None:
        """Marks a request that the application has to refuse, with the status and the detail."""
        hosts = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
                if name_of(value) is None:
                    hosts = 2
            elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                self.scope["service.refusal"] = 501, "Not Implemented"  # type: ignore[typeddict-unknown-key]
                return
        if hosts != 1 and (hosts or self.scope["http_version"] == "1.1"):
            self.scope["service.refusal"] = 400, "Invalid host header"  # type: ignore[typeddict-unknown-key]

    def on_chunk_header(self) -> None:
        self.in_chunks = True
        # This may be the last chunk, before the trailers. They have the same limits as a head.
        self.in_trailers = True
        self.head_size = 0

    def on_body(self, body: bytes) -> None:
        self.in_trailers = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.in_chunks = self.in_trailers = False
        self.transport.has_unread = False
        self.scope["service.whole"] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            # The response came before the end of the body. The connection is idle now.
            self._keep_alive()

    def shutdown(self) -> None:
        if self.transport.linger_timer is not None:
            self.loop.call_later(LAST_REQUEST_SECONDS, self.transport.close_now)
        elif self._is_idle() and (self.cycle is None or self.in_head):
            # Closing now would reset a request that is on its way.
            self.loop.call_later(LAST_REQUEST_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def _wait(self, seconds: float) -> None:
        """Closes the connection after these seconds, unless a head has come."""
        self.is_kept_alive = False
        self.waits_since = self.loop.time()
        self.waits_seconds = seconds
        if self.timer is not None and self.timer_ends > self.waits_since + seconds:
            self.timer.cancel()
            self.timer = None
        if self.timer is None:
            self._set_timer(seconds)

    def _keep_alive(self) -> None:
        self._wait(self.timeout_keep_alive)
        self.is_kept_alive = True

    def _look_at_time(self) -> None:
        self.timer = None
        left = self.waits_since + self.waits_seconds - self.loop.time()
        if left <= 0:
            self.transport.close()
        elif left < math.inf:
            self._set_timer(left)

    def _set_timer(self, seconds: float) -> None:
        # A timer of uvloop that is due at once can't tell when.
        self.timer_ends = self.loop.time() + seconds
        self.timer = self.loop.call_later(seconds, self._look_at_time)


def _parsable_size(data: bytes | bytearray) -> int:
    """The number of bytes to parse at once: up to the first end of a head after SMALL_BYTES.

    At most SLICE_BYTES.
    """
    # The search for one byte is ten times faster, and large bodies seldom contain it.
    line = data.find(b"\r", SMALL_BYTES)
    end = -1 if line < 0 else data.find(HEAD_END, line)
    return min(SLICE_BYTES, len(data) if end < 0 else end + len(HEAD_END))
