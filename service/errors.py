"""Exceptions to JSON, in one place: every error body is `{"detail": …}`."""

import json
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from marshmallow import ValidationError
from marshmallow.exceptions import SCHEMA
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.body import InvalidBody
from service.database import DatabaseUnavailable

logger = logging.getLogger("service")

# FastAPI's message for each of its error types.
MESSAGES = {
    "bool_parsing": "Input should be a valid boolean, unable to interpret input",
    "bool_type": "Input should be a valid boolean",
    "json_invalid": "JSON decode error",
    "missing": "Field required",
    "model_attributes_type": "Input should be a valid dictionary or object to extract fields from",
    "string_nul": "Input should be a valid string without NUL characters",
    "string_type": "Input should be a valid string",
    "string_unicode": (
        "Input should be a valid string, unable to parse raw data as a unicode string"
    ),
}


_dumps = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def error_response(
    detail: Any, status_code: int, headers: dict[str, str] | None = None
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


def describe(
    type: str,  # noqa: A002
    loc: tuple[str | int, ...],
    input: Any,  # noqa: A002
    **details: Any,
) -> dict[str, Any]:
    """One error as FastAPI words it. A type without a message is a message of marshmallow's."""
    if type in MESSAGES:
        return {"type": type, "loc": loc, "msg": MESSAGES[type], "input": input, **details}
    return {"type": "value_error", "loc": loc, "msg": type, "input": input, **details}


def describe_all(messages: Any, data: Any, loc: tuple[str | int, ...]) -> Iterator[dict[str, Any]]:
    """Walks marshmallow's messages, nested as the data is, in the order of the fields."""
    if isinstance(messages, list):
        for message in messages:
            yield describe(message, loc, data)
        return
    for key, nested in messages.items():
        if key == SCHEMA:
            yield from describe_all(nested, data, loc)
        elif nested == ["missing"]:
            yield describe("missing", (*loc, key), data)
        else:
            yield from describe_all(nested, data[key], (*loc, key))


async def validation_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    return error_response(list(describe_all(error.messages, error.data, ("body",))), 422)


async def body_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidBody)
    return error_response([describe(error.type, ("body", *error.place), **error.details)], 422)


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.detail, error.status_code, dict(error.headers or {}))


async def client_disconnected(request: Request, error: Exception) -> Response:
    # Nobody is there to read it, but the log wants no traceback for what is no defect.
    return error_response("Client disconnected", 400)


async def database_unavailable(request: Request, error: Exception) -> Response:
    logger.warning("database unavailable: %r", error.__cause__)
    return error_response("Service Unavailable", 503, {"Retry-After": "1"})


async def server_error(request: Request, error: Exception) -> Response:
    return error_response("Internal Server Error", 500)


handlers = {
    ValidationError: validation_failed,
    InvalidBody: body_invalid,
    HTTPException: http_error,
    ClientDisconnect: client_disconnected,
    DatabaseUnavailable: database_unavailable,
    Exception: server_error,
}
