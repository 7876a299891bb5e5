"""What every request passes first: limits, deadline, request id, log line, metrics, errors.

One plain ASGI class around the whole application, as each layer costs every request.
"""

import asyncio
import itertools
import logging
import math
import os
import re
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics
from service.settings import (
    ACCESS_LOG,
    ALLOWED_HOSTS,
    MAX_REQUESTS,
    METRICS,
    REQUEST_TIMEOUT,
    SERVER_TIMING,
)
from service.web import access_log, errors
from service.web.errors import RETRY, error_response

logger = logging.getLogger("service")

# What routers send and take; another value is replaced.
_is_request_id = re.compile(rb"[A-Za-z0-9+/=-]{20,200}").fullmatch
_NOSNIFF = (b"x-content-type-options", b"nosniff")
# Random for the process; a counter makes the rest, as a system call for each would cost more.
_ID_PREFIX = os.urandom(10).hex().encode()
_ids = itertools.count()
_CLOSE = {"Connection": "close"}
# A body over so many bytes goes out in parts, each of which waits for its client.
_LARGE = 65_536
_PART = 131_072


class ServiceMiddleware:
    """The outermost ASGI application; `wrap` is the middleware around `app` and around errors.

    Answers what the application raises, so that Starlette's own layers for that, whose wrappers
    around `send` cost each request, are not needed.
    """

    def __init__(self, app: ASGIApp, wrap: Callable[[ASGIApp], ASGIApp]) -> None:
        self.app = wrap(app)
        self.wrap = wrap
        # By when each request under way has to get on.
        self.deadlines: dict[asyncio.Task[None], float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _request_id(scope)
        status, size = 0, 0
        task = asyncio.current_task()
        assert task is not None

        # No coroutine of its own, as that would cost each message some more.
        def count(message: Message) -> Awaitable[None]:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                headers.append(_NOSNIFF)
                headers.append((b"x-request-id", request_id))
                if SERVER_TIMING:
                    passed = (time.perf_counter() - began) * 1000
                    headers.append((b"server-timing", b"app;dur=%.1f" % passed))
            else:
                length = len(message["body"])
                size += length
                if length > _LARGE:
                    return self._send_in_parts(message, send, task)
                if "more_body" in message:
                    # A long answer may take as long as its client keeps reading it.
                    self.deadlines[task] = time.perf_counter() + REQUEST_TIMEOUT
            return send(message)

        response: Response | None = None
        app = self.app
        if ALLOWED_HOSTS or len(self.deadlines) >= MAX_REQUESTS:
            app = self._refusal(scope) or app
        self.deadlines[task] = began + REQUEST_TIMEOUT
        try:
            try:
                await app(scope, receive, count)
            except Exception as error:
                response = await errors.answer(error)
                if response is None:
                    logger.exception("request_id=%s", request_id.decode())
                    response = error_response("Internal Server Error", 500)
            # Not within `except`: while a client takes its answer, the error, which may hold all
            # that the client sent, is gone.
            if response is not None and not status:
                await self.wrap(response)(scope, receive, count)
        except asyncio.CancelledError:
            # By the deadline, or at the end of the grace of a shutdown. An answer that has begun
            # is broken off.
            task.uncancel()
            if status:
                await _abort(scope)
            else:
                await self.wrap(_late(scope))(scope, receive, count)
        finally:
            del self.deadlines[task]
            seconds = time.perf_counter() - began
            if METRICS:
                route = scope.get("route")
                metrics.request(route.path if route else "", scope["method"], status, seconds)
            if ACCESS_LOG:
                access_log.write(scope, status, seconds, size, request_id)

    async def _send_in_parts(self, message: Message, send: Send, task: asyncio.Task[None]) -> None:
        """Sends a large body; at the end of an answer, returns when the transport has none of it.

        Before that the request is under way, so that its deadline and MAX_REQUESTS bound the memory
        of bodies that clients don't take.
        """
        body = message["body"]
        for start in range(0, len(body), _PART):
            # A slice, so that the transport doesn't hold the whole body.
            part = bytes(body[start : start + _PART])
            self.deadlines[task] = time.perf_counter() + REQUEST_TIMEOUT
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if not message.get("more_body", False):
            # `send` first waits until the client has taken the parts before.
            self.deadlines[task] = time.perf_counter() + REQUEST_TIMEOUT
            await send({"type": "http.response.body", "body": b""})

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            async with self._watched():
                await self.app(scope, receive, _told(send))
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        """The answer to a request that shall not reach the application; health checks always do."""
        if scope["path"].startswith("/health/"):
            return None
        if len(self.deadlines) >= MAX_REQUESTS:
            return self.wrap(error_response("Too many requests are under way", 503, RETRY))
        if ALLOWED_HOSTS:
            name = Request(scope).url.hostname or ""
            if not any(_is_host(name, allowed) for allowed in ALLOWED_HOSTS):
                return self.wrap(error_response("Invalid host header", 400))
        return None

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            access_log.flush()
            metrics.end()

    async def _watch(self) -> None:
        """Ends requests whose deadline has passed; a timer for each would cost each of them."""
        while True:
            await asyncio.sleep(min(1.0, REQUEST_TIMEOUT / 4))
            now = time.perf_counter()
            for task, deadline in list(self.deadlines.items()):
                if deadline < now:
                    self.deadlines[task] = math.inf
                    task.cancel()


def _told(send: Send) -> Send:
    """Tells in one line why the service can't start, where the reason is known."""

    async def tell(message: Message) -> None:
        error = sys.exception()
        if message["type"] == "lifespan.startup.failed" and isinstance(
            error, sqlite3.DatabaseError
        ):
            # Starlette gives a traceback.
            message["message"] = f"The database can't be used: {error}"
        await send(message)

    return tell


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _is_request_id(value):
            return bytes(value)
    return b"%b%012x" % (_ID_PREFIX, next(_ids))


async def _abort(scope: Scope) -> None:
    """Ends the connection at once; to close it would wait until the client takes what is sent."""
    if "extensions" in scope:
        scope["extensions"]["service.abort"]()
        # Until the server has taken note; it would log an answer that is not complete.
        await asyncio.sleep(0)


def _late(scope: Scope) -> Response:
    if "body_expected" in scope:
        return error_response("The body did not arrive in time", 408, _CLOSE)
    return error_response("Service Unavailable", 503, RETRY)


def _is_host(name: str, allowed: str) -> bool:
    """Whether a host in lower case is one of ALLOWED_HOSTS."""
    if allowed == "*":
        return True
    if allowed.startswith("*."):
        return name.endswith(allowed[1:])
    return name == allowed
