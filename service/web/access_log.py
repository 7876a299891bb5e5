"""One logfmt line a request on stdout."""

import asyncio
import json
import re
import sys

from starlette.types import Scope

from service.settings import ACCESS

FLUSH_SECONDS = 0.2
# A line that is longer doesn't wait for others, as many of them would fill the memory.
LONG = 1000

_lines: list[str] = []


# What logfmt takes without quotes: visible ASCII but for these three.
_is_plain = re.compile(r"[!#-<>-\[\]-~]+").fullmatch


def _quote(value: str) -> str:
    return value if _is_plain(value) else json.dumps(value)


def write(scope: Scope, status: int, seconds: float, size: int, request_id: bytes) -> None:
    """Writes a request's line soon; one system call serves many lines."""
    path = _quote(scope["raw_path"].decode("latin-1"))
    # A name that a proxy gave, which may be anything.
    client = _quote(scope["client"][0]) if scope["client"] else ""
    user = ""
    if ACCESS == "token":
        # Empty for a request without a user; a username needs no quotes.
        user = f" user={scope['user']['username'] if 'user' in scope else ''}"
    line = (
        f"method={scope['method']} path={path} status={status} duration_ms={seconds * 1e3:.1f}"
        f" bytes={size} request_id={request_id.decode()} fwd={client}{user}\n"
    )
    _lines.append(line)
    if len(line) > LONG:
        flush()
    elif len(_lines) == 1:
        asyncio.get_running_loop().call_later(FLUSH_SECONDS, flush)


def flush() -> None:
    if _lines:
        text = "".join(_lines)
        _lines.clear()
        sys.stdout.write(text)
        sys.stdout.flush()
