"""Exceptions to JSON, in one place: every error body is `{"detail": …}`."""

import json
import logging
import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.trouble import DatabaseUnavailable
from service.validation import InvalidInput

logger = logging.getLogger("service")

RETRY = {"Retry-After": "1"}
LOG_SECONDS = 1
_logged_at = -math.inf

_dumps = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def error_response(
    detail: Any, status_code: int, headers: Mapping[str, str] | None = None
) -> Response:
    """`{"detail": detail}` as JSON, whatever a client's JSON may have put into it.

    NaN and the infinities become null, as JSON has no word for them; lone surrogates become
    U+FFFD, as UTF-8 has none.
    """
    try:
        text = _dumps({"detail": detail}, allow_nan=False)
    except RecursionError:
        return error_response("There was an error parsing the body", 400)
    except ValueError:
        finite = json.loads(json.dumps(detail), parse_constant=lambda _: None)
        text = _dumps({"detail": finite})
    try:
        body = text.encode()
    except UnicodeEncodeError:
        body = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return Response(body, status_code, headers, "application/json")


def _log(error: DatabaseUnavailable) -> None:
    """Logs trouble with the database, of which each query tells, once a second."""
    global _logged_at
    now = time.monotonic()
    if now - _logged_at >= LOG_SECONDS:
        _logged_at = now
        logger.warning("database unavailable: %r", error.__cause__)


def answer(error: Exception) -> Response | None:
    """The response that tells an exception; None for a defect of this service."""
    match error:
        case InvalidInput():
            return error_response(error.errors, 422)
        case HTTPException(status_code=304):
            return Response(status_code=304, headers=error.headers)
        case HTTPException():
            return error_response(error.detail, error.status_code, error.headers)
        case ClientDisconnect():
            # Nobody is there to read it, but the log wants no traceback for what is no defect.
            return error_response("Client disconnected", 400)
        case DatabaseUnavailable():
            _log(error)
            return error_response("Service Unavailable", 503, RETRY)
    return None
