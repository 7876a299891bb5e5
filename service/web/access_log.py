"""The access log: one line for each request, on stdout, as logfmt or JSON."""

import asyncio
import json
import re
import sys
from datetime import UTC, datetime
from urllib.parse import quote

from starlette.types import Scope

from service import log_lines, metrics
from service.settings import ACCESS, LOG_FORMAT
from service.web import output, tracing
from service.web.tracing import Trace

FLUSH_SECONDS = 0.2
LAST_SECONDS = 1.0
# A longer line is written at once, because many of them would fill the memory.
LONG_LINE = 1000
# Longer values are cut, so that a line has at most a few KB.
MAX_VALUE = 1000

_lines: list[str] = []

# logfmt needs no quotes for visible ASCII without ", = and \.
_is_plain = re.compile(r"[!#-<>-\[\]-~]+").fullmatch

# The methods that OpenTelemetry knows.
METHODS = metrics.METHODS | {"CONNECT", "TRACE"}


def method_of(scope: Scope) -> str:
    """The method as OpenTelemetry names it."""
    method = scope["method"]
    return str(method) if method in METHODS else "_OTHER"


def path_of(scope: Scope) -> str:
    """The path as the client sent it, if the server gives that."""
    raw_path = scope.get("raw_path")
    return quote(scope["path"]) if raw_path is None else raw_path.decode("latin-1")


def cut(value: str) -> str:
    """The value, without what is over MAX_VALUE characters."""
    return value if len(value) <= MAX_VALUE else value[:MAX_VALUE] + "..."


def _quote(value: str) -> str:
    value = cut(value)
    return value if _is_plain(value) else json.dumps(value)


def as_logfmt(
    scope: Scope, status: int, seconds: float, size: int, request_id: bytes, trace: Trace | None
) -> str:
    """A line of logfmt."""
    # X-Forwarded-For may contain any text. Not every server gives a client.
    client = _quote(scope["client"][0]) if scope.get("client") else ""
    user = ""
    if ACCESS != "open":
        # Empty without a user. A username needs no quotes.
        user = f" user={scope['user']['username'] if 'user' in scope else ''}"
    return (
        f"method={scope['method']} path={_quote(path_of(scope))} status={status}"
        f" duration_ms={seconds * 1e3:.1f} bytes={size} request_id={request_id.decode()}"
        f" fwd={client}{user}{tracing.logfmt(trace) if trace else ''}\n"
    )


def as_json(
    scope: Scope, status: int, seconds: float, size: int, request_id: bytes, trace: Trace | None
) -> str:
    """A line of JSON. Its message is what OpenTelemetry calls the span of the request."""
    method = method_of(scope)
    is_known = method != "_OTHER"
    route = scope.get("route")
    values: dict[str, object] = {
        "timestamp": datetime.now(UTC),
        "level": "INFO",
        "message": (method if is_known else "HTTP") + (f" {route.path}" if route else ""),
        "http.request.method": method,
        "url.path": cut(path_of(scope)),
        "http.server.request.duration": round(seconds, 6),
        "http.response.body.size": size,
    }
    if not is_known:
        values["http.request.method_original"] = cut(scope["method"])
    if route:
        values["http.route"] = route.path
    if status:
        values["http.response.status_code"] = status
    if scope.get("client"):
        values["client.address"] = cut(scope["client"][0])
    if "user" in scope:
        values["user.name"] = scope["user"]["username"]
    return log_lines.encode(values | tracing.names(request_id, trace)) + "\n"


_line = as_json if LOG_FORMAT == "json" else as_logfmt


def write(
    scope: Scope, status: int, seconds: float, size: int, request_id: bytes, trace: Trace | None
) -> None:
    """Writes a request's line within FLUSH_SECONDS; one system call writes many lines."""
    line = _line(scope, status, seconds, size, request_id, trace)
    _lines.append(line)
    if len(line) > LONG_LINE:
        flush()
    elif len(_lines) == 1:
        asyncio.get_running_loop().call_later(FLUSH_SECONDS, flush)


def flush() -> None:
    """Gives the lines to the thread that writes them."""
    if _lines:
        text = "".join(_lines)
        _lines.clear()
        stdout = output.of(sys.stdout)
        if stdout is not None:
            stdout.put(text)


def end() -> None:
    """Writes the last lines, if the reader takes them."""
    flush()
    output.end()
    stdout = output.of(sys.stdout)
    if stdout is not None:
        stdout.finish(LAST_SECONDS)
