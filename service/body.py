"""Reads a request's body the way FastAPI does, within a limit."""

import json
from email.message import Message
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from service import settings

# The rest of the body is not read, so the connection can't serve another request.
TOO_LARGE = {"Connection": "close"}


class InvalidBody(Exception):
    """A body that can't be taken for JSON: FastAPI's error type, its place and its details."""

    def __init__(self, type: str, *place: int, **details: Any) -> None:  # noqa: A002
        super().__init__(type)
        self.type = type
        self.place = place
        self.details = details


async def read_body(request: Request) -> bytes:
    """The whole body, at most MAX_BODY_BYTES of it; HTTPException 413 for more."""
    # Leading zeros are legal, and int() takes only so many digits.
    announced = request.headers.get("content-length", "").lstrip("0")[:20]
    if announced.isdecimal() and int(announced) > settings.MAX_BODY_BYTES:
        raise HTTPException(413, "Content Too Large", TOO_LARGE)
    body = b""
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message["body"]
        more = message["more_body"]
        if len(body) > settings.MAX_BODY_BYTES:
            raise HTTPException(413, "Content Too Large", TOO_LARGE)
    return body


async def read_json(request: Request) -> Any:
    """The body as JSON, or as plain text where the content type is no JSON.

    Raises InvalidBody, or HTTPException 400 for what can't be decoded and 413 for too much.
    """
    body = await read_body(request)
    if not body:
        raise InvalidBody("missing", input=None)
    try:
        if _is_json(request.headers.get("content-type", "")):
            return json.loads(body)
        return body.decode()
    except json.JSONDecodeError as error:
        raise InvalidBody("json_invalid", error.pos, input={}, ctx={"error": error.msg}) from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "There was an error parsing the body") from error


def _is_json(content_type: str) -> bool:
    if content_type == "application/json":
        return True
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )
