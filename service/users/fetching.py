"""Fetches JSON from a provider within bounded time and size, in a thread of its own."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.request import HTTPRedirectHandler, Request, build_opener

Result = TypeVar("Result")

SECONDS = 3
MAX_BYTES = 256 * 1024

# What `read_json` raises.
ERRORS = (OSError, ValueError, RecursionError, HTTPException)


class NoRedirects(HTTPRedirectHandler):
    """Answers with a redirect are errors: keys come from the address that is configured."""

    def redirect_request(self, *_: Any) -> None:
        return None


# It uses the proxy of the environment, and the system's certificates.
_opener = build_opener(NoRedirects)


def read_json(url: str, until: float) -> Any:
    """The JSON document at a URL, until a time of the monotonic clock. Raises ERRORS."""
    request = Request(url, headers={"Accept": "application/json", "User-Agent": "notes"})  # noqa: S310
    body = b""
    with _opener.open(request, timeout=max(0.001, until - time.monotonic())) as response:
        while chunk := response.read1(MAX_BYTES):
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError(f"{url} has over {MAX_BYTES} bytes")
            if time.monotonic() > until:
                raise TimeoutError(f"{url} takes longer than {SECONDS} s")
    return json.loads(body)


async def in_thread(work: Callable[[], Result]) -> Result:
    """Runs a function in a thread. If the caller is cancelled, nobody waits for the thread.

    The threads of `asyncio.to_thread` would keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: Exception | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]
            else:
                future.set_exception(error)

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except Exception as error:
            failed = error
        # The loop may have ended.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, daemon=True).start()
    return await future
