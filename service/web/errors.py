"""Exceptions to responses. Every error body is `{"detail": …}`."""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.database.errors import DatabaseUnavailable
from service.schemas.slices import in_slices
from service.schemas.validation import InvalidInput

logger = logging.getLogger("service")

RETRY = {"Retry-After": "1"}
LOG_SECONDS = 1
_logged_at = -math.inf

_dumps = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def error_response(
    detail: Any, status_code: int, headers: Mapping[str, str] | None = None
) -> Response:
    """`{"detail": detail}` as JSON."""
    return _response(_encode(detail), status_code, headers)


def _response(detail: bytes, status_code: int, headers: Mapping[str, str] | None) -> Response:
    return Response(b'{"detail":%b}' % detail, status_code, headers, "application/json")


def _encode(value: Any) -> bytes:
    """JSON for any value that a client's JSON can contain.

    NaN and the infinities become null, because JSON lacks them. Lone surrogates become U+FFFD,
    because UTF-8 lacks them.
    """
    try:
        text = _dumps(value, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        text = _dumps(finite)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


async def _invalid_input_response(errors: Sequence[dict[str, Any]]) -> Response:
    """The 422. It is made in slices, because each error may be as large as a body."""
    try:
        encoded = await in_slices(_encode, errors)
    except RecursionError:
        return error_response("There was an error parsing the body", 400)
    return _response(b"[%b]" % b",".join(encoded), 422, None)


def _log(error: DatabaseUnavailable) -> None:
    """Logs the error at most once a second, because every query may raise one."""
    global _logged_at
    now = time.monotonic()
    if now - _logged_at >= LOG_SECONDS:
        _logged_at = now
        logger.warning("database unavailable: %r", error.__cause__)


async def answer(error: Exception) -> Response | None:
    """The response for an exception; None for a defect of this service."""
    match error:
        case InvalidInput():
            return await _invalid_input_response(error.errors)
        case HTTPException():
            return error_response(error.detail, error.status_code, error.headers)
        case ClientDisconnect():
            # No client reads this. It keeps a traceback out of the log, as this is no defect.
            return error_response("Client disconnected", 400)
        case DatabaseUnavailable():
            _log(error)
            return error_response("Service Unavailable", 503, RETRY)
    return None
