"""The access log: one logfmt line for each request, on stdout."""

import asyncio
import json
import re
import sys
from urllib.parse import quote

from starlette.types import Scope

from service.settings import ACCESS
from service.web import output, tracing

FLUSH_SECONDS = 0.2
LAST_SECONDS = 1.0
# A longer line is written at once, because many of them would fill the memory.
LONG_LINE = 1000
# Longer values are cut, so that a line has at most a few KB.
MAX_VALUE = 1000

_lines: list[str] = []

# logfmt needs no quotes for visible ASCII without ", = and \.
_is_plain = re.compile(r"[!#-<>-\[\]-~]+").fullmatch


def _quote(value: str) -> str:
    if len(value) > MAX_VALUE:
        value = value[:MAX_VALUE] + "..."
    return value if _is_plain(value) else json.dumps(value)


def write(
    scope: Scope,
    status: int,
    seconds: float,
    size: int,
    request_id: bytes,
    trace: tracing.Trace | None,
) -> None:
    """Writes a request's line within FLUSH_SECONDS; one system call writes many lines."""
    # Not every server gives these two.
    raw_path = scope.get("raw_path")
    path = _quote(raw_path.decode("latin-1") if raw_path is not None else quote(scope["path"]))
    # X-Forwarded-For may contain any text.
    client = _quote(scope["client"][0]) if scope.get("client") else ""
    user = ""
    if ACCESS != "open":
        # Empty without a user. A username needs no quotes.
        user = f" user={scope['user']['username'] if 'user' in scope else ''}"
    line = (
        f"method={scope['method']} path={path} status={status} duration_ms={seconds * 1e3:.1f}"
        f" bytes={size} request_id={request_id.decode()} fwd={client}{user}"
        f"{tracing.logfmt(trace)}\n"
    )
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
