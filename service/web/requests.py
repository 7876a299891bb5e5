"""Reads the parts of a request. Bodies are read as in FastAPI, up to a limit."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from email.message import Message
from itertools import chain, islice
from typing import Any

import orjson
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from service import settings
from service.schemas.compiled import OTHER
from service.schemas.fields import MAX_ID
from service.schemas.slices import in_slices
from service.schemas.validation import InvalidInput, describe
from service.web import slots
from service.web.responses import NDJSON

# The rest of the body is not read, so the connection can't be reused.
TOO_LARGE = {"Connection": "close"}
# RFC 9110, section 12.5.3.
NOT_ENCODED = {"Accept-Encoding": "identity"}
# `json` can't be interrupted, and takes up to 10 ms for this many.
MAX_VALUES = 30_000
FEW_VALUES = 100
MAX_PARAMETERS = 1000
_ID = re.compile("[1-9][0-9]{0,15}")
# Smaller bodies that have come as a whole are not counted.
SMALL_BYTES = 8192
# Shorter JSON is not too deep for `json`, on any Python.
SHORT_BYTES = 1000
# A chunk of lines has this size, and then continues to the end of its last line.
CHUNK_BYTES = 65_536


def read_query(query_string: bytes) -> dict[str, str]:
    """The last value of each parameter. Raises HTTPException 414 for over MAX_PARAMETERS."""
    if query_string.count(b"&") >= MAX_PARAMETERS:
        raise HTTPException(414, f"The query has more than {MAX_PARAMETERS:,} parameters")
    return dict(QueryParams(query_string))


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises HTTPException 413 for more than MAX_BODY_BYTES, 415 for a Content-Encoding, and 503.
    """
    field = b""
    for name, value in request.scope["headers"]:
        if name == b"content-length":
            field = value
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise HTTPException(415, headers=NOT_ENCODED)
    # Leading zeros are legal, and int() limits the number of digits.
    declared = field.lstrip(b"0")[:20]
    length = int(declared) if declared.isdigit() else SMALL_BYTES
    if length > settings.MAX_BODY_BYTES:
        raise HTTPException(413, "Content Too Large", TOO_LARGE)
    if length < SMALL_BYTES and "service.whole" in request.scope:
        # Most bodies come with their heads, and need no room in which to wait.
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        return bytes(message["body"])
    # That of the outermost layer. A middleware may read in a task of its own.
    task = request.scope["service.task"]
    slots.wait(task, request.scope)
    body = b""
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        slots.add(task, len(part))
        body += part
        more = message.get("more_body", False)
        if len(body) > settings.MAX_BODY_BYTES:
            raise HTTPException(413, "Content Too Large", TOO_LARGE)
    slots.begin(task)
    return body


def parse(body: bytes, content_type: str) -> Any:
    """The body as JSON, or as a text if the content type is not JSON.

    Raises InvalidInput, or HTTPException 400 if the body can't be decoded, and 413 if it has more
    than MAX_VALUES values.
    """
    if not body:
        raise InvalidInput(describe("missing", ("body",), None))
    is_json = _is_json(content_type)
    if is_json:
        _refuse_many_values([body])
    return _decode(body, ("body",), is_json)


def load_short(load_usual: Callable[[Any], Any], body: bytes, content_type: str) -> Any:
    """What `load_usual` makes of short JSON; OTHER for what `parse` has to read, or to refuse."""
    if len(body) > SHORT_BYTES or content_type != "application/json":
        return OTHER
    try:
        # It refuses some texts that `json` reads, and reads integers of over 64 bits as floats.
        return load_usual(orjson.loads(body))
    except orjson.JSONDecodeError:
        return OTHER


async def parse_ndjson(body: bytes, most: int) -> list[Any]:
    """The values of newline-delimited JSON, without blank lines. Raises the errors of `parse`.

    It parses at most `most` + 1 lines, enough to notice too many.
    """
    found = await in_slices(lambda chunk: [line for line in chunk if line.strip()], _chunks(body))
    lines = list(islice(chain.from_iterable(found), most + 1))
    _refuse_many_values(lines)
    return await in_slices(lambda line: _decode(line[1], ("body", line[0])), enumerate(lines))


def _chunks(body: bytes) -> Iterator[list[bytes]]:
    """The lines of a body in chunks, because there may be a million."""
    start = 0
    while start < len(body):
        end = body.find(b"\n", start + CHUNK_BYTES)
        end = len(body) if end < 0 else end
        yield body[start:end].split(b"\n")
        start = end + 1


def _refuse_many_values(documents: Sequence[bytes]) -> None:
    """Raises HTTPException 413 for JSON of more than MAX_VALUES values.

    As many are the commas and opening brackets outside of strings. An empty container is two.
    """
    # In every encoding of JSON, each of them has its ASCII byte.
    whole = b"".join(documents)
    if len(whole) <= MAX_VALUES or sum(map(whole.count, b",[{")) <= MAX_VALUES:
        return
    if sum(map(_count_values, documents)) > MAX_VALUES:
        raise HTTPException(413, f"The body has more than {MAX_VALUES:,} JSON values")


def count_values(body: bytes, content_type: str) -> int:
    """How many JSON values a body may have that is not refused for their number."""
    if not (_is_json(content_type) or media_type(content_type) == NDJSON):
        return 1
    found = sum(map(body.count, b",[{"))
    if found > FEW_VALUES:
        # They may be in a text.
        found = _count_values(body)
    return min(found, MAX_VALUES)


def _count_values(document: bytes) -> int:
    text = document.decode(json.detect_encoding(document), "replace")
    text = text.replace("\\\\", "").replace('\\"', "")
    # A value and its key have at most four.
    if (values := text.count('"') // 4) > MAX_VALUES:
        return values
    outside = "".join(text.split('"')[::2])
    return sum(map(outside.count, ",[{"))


def _decode(body: bytes, loc: tuple[str | int, ...], is_json: bool = True) -> Any:
    try:
        return json.loads(body) if is_json else body.decode()
    except json.JSONDecodeError as error:
        description = describe("json_invalid", (*loc, error.pos), {})
        raise InvalidInput(description | {"ctx": {"error": error.msg}}) from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "There was an error parsing the body") from error


def media_type(content_type: str) -> str:
    """The type and subtype of a Content-Type in lower case, as FastAPI reads it."""
    message = Message()
    message["content-type"] = content_type
    return message.get_content_type() if content_type else ""


def _is_json(content_type: str) -> bool:
    if content_type == "application/json":
        return True
    main, _, subtype = media_type(content_type).partition("/")
    return main == "application" and (subtype == "json" or subtype.endswith("+json"))


def bearer_token(scope: Scope) -> str | None:
    """The bearer token (RFC 6750, section 2.1); None without exactly one Authorization header."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, token = values[0].decode("latin-1").partition(" ")
    return token.strip(" ") if scheme.lower() == "bearer" else None


def path_id(request: Request, name: str) -> int:
    """The path parameter as an id. Raises HTTPException 404 for an invalid id."""
    text = request.path_params[name]
    if not _ID.fullmatch(text) or int(text) > MAX_ID:
        raise HTTPException(404)
    return int(text)
