"""The operations on notes. Each parses its request, calls a query, and responds."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service import metrics
from service.database.coalescing import coalesce
from service.database.dialect import dialect
from service.database.operations import LARGE
from service.database.statements import Run, fetch
from service.notes import openapi, queries
from service.notes.listing import PageRequest, count, described, dump, read_page, stream
from service.notes.queries import Selection
from service.notes.schemas import MAX_BATCH, listing_query, note_in, note_patch
from service.schemas.compiled import compile_load
from service.schemas.validation import load, load_all
from service.tables import Row
from service.web import budget, conditions, idempotency, preferences
from service.web.requests import media_type, parse, parse_ndjson, path_id, read_body, read_query
from service.web.responses import (
    NDJSON,
    Prepared,
    Stream,
    counted,
    encode_ndjson,
    next_link,
    written,
)
from service.web.routing import Path, Resource

load_note = compile_load(note_in)


async def _get_notes(note_ids: list[int]) -> Sequence[Row | None]:
    found = await queries.get_notes(set(note_ids))
    return [found.get(note_id) for note_id in note_ids]


# Each may have MAX_BODY_BYTES.
get_note = coalesce(_get_notes, max_batch=100, observe=metrics.batch("get_notes"))
_observe_insert = metrics.batch("insert_notes")
_insert = partial(coalesce, queries.insert_notes, observe=_observe_insert, divides=dialect.REJECTED)
_insert_small = _insert(max_batch=queries.MAX_SMALL)
_insert_medium = _insert(max_batch=queries.MAX_MEDIUM)


async def insert_note(note: Mapping[str, Any]) -> Row:
    """Stores a note together with others of its size, or a large one alone."""
    size = len(note["text"])
    if size <= queries.SMALL:
        return await _insert_small(note)
    if size <= LARGE:
        return await _insert_medium(note)
    _observe_insert(1)
    return (await queries.insert_notes([note]))[0]


# Cached: validation costs half as much as the rest of a listing, and few queries are frequent.
@lru_cache(1000)
def _first_page(query_string: bytes, ndjson: bool) -> tuple[PageRequest, bool]:
    """The page that a query string requests, and whether the query has a limit."""
    query = load(listing_query.load, read_query(query_string), "query")
    selection = Selection(query["order"] == "desc", query["completed"], query["q"])
    limit = query["limit"]
    return PageRequest(
        selection, query["after"], limit or queries.PAGE_LENGTH, ndjson
    ), limit is not None


def _names_no_after(others: bytes) -> bool:
    """Whether these parts of a query string are complete, and none of them is named `after`."""
    return others[-1:] in (b"", b"&") and b"after" not in others and b"%" not in others


def _page_request(query_string: bytes, ndjson: bool) -> tuple[PageRequest, bool]:
    # Long query strings would fill the cache's memory.
    read = _first_page if len(query_string) < 200 else _first_page.__wrapped__
    # Pages that follow each other differ at the end. The rest is often the same.
    others, found, after = query_string.rpartition(b"after=")
    if found and after.isdigit() and len(after) < 16 and _names_no_after(others):
        first, is_limited = read(others[:-1], ndjson)
        return first._replace(after=int(after)), is_limited
    return read(query_string, ndjson)


async def read_notes(request: Request) -> Response:
    ndjson = preferences.wants_ndjson(request)
    page_request, is_limited = _page_request(request.scope["query_string"], ndjson)
    page = await read_page(page_request)
    total = []
    if preferences.wants_count(request):
        total = counted(await count(page_request.selection))
    if not is_limited and page.after is not None:
        budget.take(request.scope, budget.PART_BYTES)
        return Stream(stream(page_request, page), [*described(ndjson), *total])
    if page.hold is not None:
        budget.keep(request.scope, page.hold)
    # Of a shared page, a client that doesn't read has a part of its own.
    budget.take(request.scope, len(page.body) if page.hold is None else budget.PART_BYTES)
    link = [] if page.after is None else [next_link(request, page.after)]
    return Prepared(page.body, [*page.headers, *total, *link])


def _encode(note: Row) -> bytes:
    return orjson.dumps(dump([note])[0])


def _tag(note: Row) -> str:
    return conditions.etag(_encode(note))


def _described(request: Request, note_id: int, note: bytes) -> dict[str, str]:
    """The note's tag, and of what it is the tag (RFC 9110, section 8.7)."""
    path = f"{request.scope.get('root_path', '')}/notes/{note_id}"
    return {"etag": conditions.etag(note), "content-location": path}


async def _claim(request: Request, body: bytes) -> None:
    """Waits for room for the answer to a write, which is about as large as its body."""
    if len(body) > budget.LARGE_BYTES and not preferences.wants_minimal(request):
        await budget.claim(request.scope, len(body))


async def create_note(request: Request) -> Response:
    body = await read_body(request)
    note = load(load_note, parse(body, request.headers.get("content-type", "")), "body")
    await _claim(request, body)

    async def store(run: Run) -> bytes:
        return _encode((await queries.insert_notes([note], run))[0])

    if "idempotency-key" in request.headers:
        stored = await idempotency.store_once(request, body, store)
    else:
        stored = _encode(await insert_note(note))
    note_id = orjson.loads(stored)["id"]
    headers = _described(request, note_id, stored)
    minimal = preferences.wants_minimal(request)
    if minimal:
        headers["location"] = str(request.url_for("note", note_id=note_id))
    return written(minimal, stored, headers)


async def create_notes(request: Request) -> Response:
    body = await read_body(request)
    content_type = request.headers.get("content-type", "")
    if body and media_type(content_type) == NDJSON:
        values = await parse_ndjson(body, MAX_BATCH)
    else:
        values = parse(body, content_type)
    new = await load_all(load_note, values, MAX_BATCH, "body")
    await _claim(request, body)

    async def store(run: Run = fetch) -> bytes:
        return orjson.dumps(dump(await queries.insert_notes(new, run)))

    if "idempotency-key" in request.headers:
        stored = await idempotency.store_once(request, body, store)
    else:
        stored = await store()
    minimal = preferences.wants_minimal(request)
    if preferences.wants_ndjson(request):
        return written(minimal, encode_ndjson(orjson.loads(stored)), media_type=NDJSON)
    return written(minimal, stored)


async def read_note(request: Request) -> Response:
    note_id = path_id(request, "note_id")
    note = await get_note(note_id)
    if note is None:
        raise HTTPException(404)
    body = _encode(note)
    try:
        budget.take(request.scope, len(body))
    except HTTPException:
        # It is forgotten while it waits for room.
        size = len(body)
        del note, body
        await budget.claim(request.scope, size)
        note = await get_note(note_id)
        if note is None:
            raise HTTPException(404) from None
        body = _encode(note)
    return conditions.tagged(body)


async def replace_note(request: Request) -> Response:
    return await _change_note(request, load_note)


async def change_note(request: Request) -> Response:
    return await _change_note(request, note_patch.load)


async def _change_note(request: Request, deserialize: Callable[[Any], Any]) -> Response:
    note_id = path_id(request, "note_id")
    body = await read_body(request)
    changes = load(deserialize, parse(body, request.headers.get("content-type", "")), "body")
    await _claim(request, body)

    def update(old: Row | None) -> Awaitable[Row | None]:
        return queries.update_note(note_id, changes, old)

    note = await conditions.write(request, lambda: get_note(note_id), _tag, update)
    changed = _encode(note)
    minimal = preferences.wants_minimal(request)
    headers = _described(request, note_id, changed)
    if minimal and request.method == "PUT":
        # The client would take its tag for that of what it sent (RFC 9110, section 9.3.4).
        del headers["etag"]
    return written(minimal, changed, headers)


async def delete_note(request: Request) -> Response:
    note_id = path_id(request, "note_id")

    def delete(old: Row | None) -> Awaitable[bool]:
        return queries.delete_note(note_id, old)

    await conditions.write(request, lambda: get_note(note_id), _tag, delete)
    return Response(status_code=204)


resource = Resource(
    [
        Path("/notes/", {"GET": read_notes, "POST": create_note}),
        Path("/notes/batch", {"POST": create_notes}),
        Path(
            "/notes/{note_id}",
            {"GET": read_note, "PUT": replace_note, "PATCH": change_note, "DELETE": delete_note},
            "note",
        ),
    ],
    openapi.SCHEMAS,
    openapi.OPERATIONS,
)
