"""The outermost layer: limits, deadline, request id, access log, metrics and errors.

It is one plain ASGI class, because each layer costs every request.
"""

import asyncio
import logging
import math
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import hosts, log_lines, metrics, telemetry
from service.settings import (
    ACCESS_LOG,
    ALLOWED_HOSTS,
    LOG_FORMAT,
    METRICS,
    REQUEST_TIMEOUT,
    SERVER_TIMING,
)
from service.web import access_log, budget, errors, output, slots, tracing
from service.web.errors import RETRY, error_response
from service.web.preferences import is_health_check

logger = logging.getLogger("service")

_NOSNIFF = (b"x-content-type-options", b"nosniff")
_CLOSE = {"Connection": "close"}
_LARGE_BYTES = budget.LARGE_BYTES


class ServiceMiddleware:
    """The outermost ASGI application. `wrap` puts the other middleware around `app` and errors.

    It also answers exceptions. It replaces Starlette's two layers for this, because each wraps
    `send` at every request.
    """

    def __init__(self, app: ASGIApp, wrap: Callable[[ASGIApp], ASGIApp]) -> None:
        self.app = wrap(app)
        self.wrap = wrap
        self.deadlines = slots.deadlines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        began = time.perf_counter()
        request_id, trace = tracing.read_ids(scope["headers"])
        span = None
        if telemetry.ON:
            span = _begin_span(scope, trace)
            trace = tracing.Trace(*span.ids) if span and span.ids else trace
        names: dict[str, str] | None = None
        if LOG_FORMAT == "json":
            names = tracing.names(request_id, trace)
            log_lines.request.set(names)
        status, size = 0, 0
        task = asyncio.current_task()
        assert task is not None
        scope["service.task"] = task

        # Not a coroutine, because this would cost more for each message.
        def count(message: Message) -> Awaitable[None]:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                # A copy, as the application may send its own headers again.
                headers = [*message.get("headers", ()), _NOSNIFF, (b"x-request-id", request_id)]
                if SERVER_TIMING:
                    elapsed = (time.perf_counter() - began) * 1000
                    headers.append((b"server-timing", b"app;dur=%.1f" % elapsed))
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                length = len(message.get("body", b""))
                size += length
                if length > _LARGE_BYTES and scope["method"] != "HEAD":
                    return self._send_in_parts(message, send, task)
                if "more_body" in message:
                    # A stream may take as long as the client reads it.
                    self.deadlines[task] = time.perf_counter() + REQUEST_TIMEOUT
            return send(message)

        response: Response | None = None
        app = self.app
        if ALLOWED_HOSTS or slots.is_full() or "service.refusal" in scope:
            app = self._refusal(scope) or app
        self.deadlines[task] = began + REQUEST_TIMEOUT
        try:
            try:
                await app(scope, receive, count)
            except Exception as error:
                response = await errors.answer(error)
                if response is None:
                    _log_defect(request_id, trace)
                    response = error_response("Internal Server Error", 500)
                elif status and not isinstance(error, ClientDisconnect):
                    _log_broken(request_id, trace, repr(error))
            # Outside of `except`: the error may hold the request's body, and must be freed before
            # a slow client reads the response.
            if response is not None and not status:
                try:
                    if "service.holds" in scope:
                        # What it held for is forgotten, so the answer always has room.
                        budget.settle(scope, len(response.body))
                    else:
                        budget.take(scope, len(response.body))
                except HTTPException as full:
                    response = error_response(full.detail, full.status_code, full.headers)
                await self.wrap(response)(scope, receive, count)
        except asyncio.CancelledError:
            # The deadline has elapsed, or the grace period of the shutdown has ended.
            task.uncancel()
            if status:
                if not _is_unread(scope):
                    _log_broken(request_id, trace, "its time is over")
                await _abort(scope)
            else:
                await self.wrap(_timeout_response(scope))(scope, receive, count)
        finally:
            slots.end(task)
            if "service.holds" in scope:
                budget.release(scope)
            seconds = time.perf_counter() - began
            route = scope.get("route")
            # A stream lasts as long as its client wants. So metrics have the time until it began.
            answered = scope["service.answered"] - began if "service.answered" in scope else seconds
            if METRICS:
                metrics.request(route.path if route else "", scope["method"], status, answered)
            if span is not None:
                telemetry.finish(span, route.path if route else "", status, answered)
            if ACCESS_LOG:
                sent = 0 if scope["method"] == "HEAD" else size
                access_log.write(scope, status, seconds, sent, request_id, trace)
            if names is not None:
                names.clear()

    async def _send_in_parts(self, message: Message, send: Send, task: asyncio.Task[None]) -> None:
        """Sends a large body. After the last part it waits until the transport's buffer is empty.

        Until then the request is active. So its deadline and MAX_REQUESTS limit the memory of
        bodies that clients don't read.
        """
        body = message["body"]
        for start in range(0, len(body), budget.PART_BYTES):
            # A copy, so that the transport doesn't keep the whole body.
            part = bytes(body[start : start + budget.PART_BYTES])
            self.deadlines[task] = time.perf_counter() + REQUEST_TIMEOUT
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if not message.get("more_body", False):
            # `send` first waits until the client has read the previous parts.
            self.deadlines[task] = time.perf_counter() + REQUEST_TIMEOUT
            await send({"type": "http.response.body", "body": b""})

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            async with self._running():
                await self.app(scope, receive, _shorten_startup_error(send))
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        """The response that refuses a request, if any. Health checks are only refused as HTTP."""
        if "service.refusal" in scope:
            status, detail = scope["service.refusal"]
            return self.wrap(error_response(detail, status, _CLOSE))
        if is_health_check(scope):
            return None
        if slots.is_full():
            return self.wrap(error_response(slots.FULL, 503, RETRY))
        if ALLOWED_HOSTS:
            name = hosts.only_name(scope["headers"])
            if name is None or not any(_is_host(name, allowed) for allowed in ALLOWED_HOSTS):
                return self.wrap(error_response("Invalid host header", 400))
        return None

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        output.redirect_logging()
        watch = asyncio.create_task(self._cancel_overdue())
        try:
            yield
        finally:
            watch.cancel()
            access_log.end()
            metrics.end()

    async def _cancel_overdue(self) -> None:
        """Cancels overdue requests. This costs less than a timer for each request."""
        while True:
            await asyncio.sleep(min(1.0, REQUEST_TIMEOUT / 4))
            now = time.perf_counter()
            for task, deadline in list(self.deadlines.items()):
                if deadline < now:
                    self.deadlines[task] = math.inf
                    task.cancel()


def _shorten_startup_error(send: Send) -> Send:
    """Shortens a known error at startup to one line."""

    async def send_short(message: Message) -> None:
        error = sys.exception()
        if message["type"] == "lifespan.startup.failed" and isinstance(
            error, sqlite3.DatabaseError
        ):
            # Starlette's message is a traceback.
            message["message"] = f"The database can't be used: {error}"
        await send(message)

    return send_short


def _begin_span(scope: Scope, trace: tracing.Trace | None) -> telemetry.Request | None:
    client = access_log.cut(scope["client"][0]) if scope.get("client") else None
    return telemetry.begin(
        access_log.method_of(scope),
        scope.get("scheme", "http"),
        access_log.cut(access_log.path_of(scope)),
        client,
        trace,
    )


def _log_defect(request_id: bytes, trace: tracing.Trace | None) -> None:
    """Logs the current exception. JSON has the ids in all lines of a request."""
    if LOG_FORMAT == "json":
        logger.exception("Internal Server Error")
    else:
        fields = tracing.logfmt(trace) if trace else ""
        logger.exception("request_id=%s%s", request_id.decode(), fields)


def _log_broken(request_id: bytes, trace: tracing.Trace | None, reason: str) -> None:
    """Logs why an answer ends after its head: its status says nothing of it."""
    if LOG_FORMAT == "json":
        logger.warning("The answer broke off: %s", reason)
    else:
        fields = tracing.logfmt(trace) if trace else ""
        logger.warning("request_id=%s%s answer broke off: %s", request_id.decode(), fields, reason)


def _is_unread(scope: Scope) -> bool:
    """Whether the client has yet to read a part of its answer; so, too, where nobody knows."""
    unread = (scope.get("extensions") or {}).get("service.unread")
    return unread is None or unread() > 0


async def _abort(scope: Scope) -> None:
    """Aborts the connection. Closing it would wait for the client to read all data."""
    abort = (scope.get("extensions") or {}).get("service.abort")
    if abort is not None:
        abort()
        # uvicorn must notice this first, or it logs an incomplete response.
        await asyncio.sleep(0)


def _timeout_response(scope: Scope) -> Response:
    expected = scope.get("body_expected")
    if expected:
        return error_response("The body did not arrive in time", 408, _CLOSE)
    if expected is not None:
        return error_response(slots.FULL, 503, RETRY | _CLOSE)
    return error_response("Service Unavailable", 503, RETRY)


def _is_host(name: str, allowed: str) -> bool:
    """Whether a host in lower case matches an item of ALLOWED_HOSTS."""
    if allowed == "*":
        return True
    if allowed.startswith("*."):
        return name.endswith(allowed[1:])
    return name == allowed
