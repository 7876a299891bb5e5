"""Exceptions to responses. Every error body is `{"detail": …}`."""

import logging
import math
import time
from collections.abc import Mapping

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.database.dialect import dialect
from service.database.errors import DatabaseUnavailable
from service.schemas.validation import Conflict, InvalidInput
from service.web.json_writer import encode

logger = logging.getLogger("service")

RETRY = {"Retry-After": "1"}
LOG_SECONDS = 1
_logged_at = -math.inf


def error_response(
    detail: str, status_code: int, headers: Mapping[str, str] | None = None
) -> Response:
    """`{"detail": detail}` as JSON."""
    return _response(orjson.dumps(detail), status_code, headers)


def _response(detail: bytes, status_code: int, headers: Mapping[str, str] | None) -> Response:
    return Response(b'{"detail":%b}' % detail, status_code, headers, "application/json")


def _log(error: DatabaseUnavailable) -> None:
    """Logs the error at most once a second, because every query may raise one."""
    global _logged_at
    now = time.monotonic()
    if now - _logged_at >= LOG_SECONDS:
        _logged_at = now
        cause = error.__cause__ or error
        # Of a file that can't be read, such as one in HOME, `repr` leaves out the name.
        file = getattr(cause, "filename", None)
        logger.warning("database unavailable: %r%s", cause, f": {file}" if file else "")


async def answer(error: Exception) -> Response | None:
    """The response for an exception; None for a defect of this service."""
    match error:
        case Conflict():
            return _response(await encode(error.errors), 409, None)
        case InvalidInput():
            return _response(await encode(error.errors), 422, None)
        case HTTPException():
            return error_response(error.detail, error.status_code, error.headers)
        case ClientDisconnect():
            # No client reads this. It keeps a traceback out of the log, as this is no defect.
            return error_response("Client disconnected", 400)
        case _ if isinstance(error, dialect.CONFLICT):
            return error_response("The values break a constraint of the database", 409)
        case DatabaseUnavailable():
            _log(error)
            return error_response("Service Unavailable", 503, RETRY)
    return None
