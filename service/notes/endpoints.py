"""Parse, call `notes`, respond."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote_plus

import orjson
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service import metrics
from service.database.coalescing import coalesce
from service.database.statements import Run
from service.notes import queries
from service.notes.listing import PageRequest, dump, lines_of, read_page, stream
from service.notes.queries import Selection
from service.notes.schemas import MAX_BATCH, listing_query, note_in, note_patch
from service.schemas.compiled import compile_load
from service.schemas.fields import MAX_ID
from service.schemas.validation import InvalidInput, describe, load, load_all
from service.tables import Row
from service.web import idempotency, preferences
from service.web.requests import media_type, parse, parse_lines, read_body
from service.web.routing import JSONBytes

LINES = "application/x-ndjson"
VARY = (b"vary", b"Accept")

load_note = compile_load(note_in)
_ID = re.compile("[1-9][0-9]{0,15}")
# The draft's string in quotes, or the bare key that most clients send.
_KEY = re.compile(r'"([ !#-\[\]-~]{1,255})"|([!#-~]{1,255})')


async def _get_notes(note_ids: list[int]) -> Sequence[Row | None]:
    found = await queries.get_notes(set(note_ids))
    return [found.get(note_id) for note_id in note_ids]


get_note = coalesce(_get_notes, most=1_000, observe=metrics.batch("get_notes"))
# The bodies of a hundred creates, each as large as MAX_BODY_BYTES, still fit into one statement.
insert_note = coalesce(queries.insert_notes, most=100, observe=metrics.batch("insert_notes"))


def _next(request: Request, after: int) -> tuple[bytes, bytes]:
    """The Link header (RFC 8288) to the page that follows."""
    # The other parameters stay as they were sent, which parsing them might not give.
    items = request.url.query.split("&")
    kept = [item for item in items if unquote_plus(item.partition("=")[0]) != "after"]
    # But for what would end the URL between its angle brackets.
    kept = [re.sub(r'[<>"\\^`{|}\s]', lambda found: quote(found[0]), item) for item in kept]
    url = request.url.replace(query="&".join([*filter(None, kept), f"after={after}"]))
    return b"link", f'<{url}>; rel="next"'.encode("latin-1")


# Checking a query takes half as long as all the rest of a listing, and few are asked for often.
@lru_cache(1000)
def _page_request(query_string: bytes, lines: bool) -> tuple[PageRequest, bool]:
    """What the query of a listing asks for, and whether that is a page of limited length."""
    query = load(listing_query.load, dict(QueryParams(query_string)), "query")
    selection = Selection(query["order"] == "desc", query["completed"], query["q"])
    limit = query["limit"]
    return PageRequest(selection, query["after"], limit or queries.PAGE, lines), limit is not None


async def read_notes(request: Request) -> Response:
    lines = preferences.wants_lines(request)
    query_string = request.scope["query_string"]
    # Long ones would fill the memory.
    read = _page_request if len(query_string) < 200 else _page_request.__wrapped__
    page_request, is_limited = read(query_string, lines)
    kind = LINES if lines else "application/json"
    page = await read_page(page_request)
    if is_limited or page.after is None:
        link = [] if page.after is None else [_next(request, page.after)]
        return JSONBytes(page.body, headers=[VARY, *link], media_type=kind)
    pages = stream(page_request, page) if request.method == "GET" else iter(())
    return StreamingResponse(pages, headers={"Vary": "Accept"}, media_type=kind)


def _encode(note: Row) -> bytes:
    return orjson.dumps(dump([note])[0])


def _written(
    minimal: bool,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """The answer to a write: the body, or none where the client prefers a minimal one."""
    extra = {} if headers is None else dict(headers)
    if minimal:
        extra["Preference-Applied"] = "return=minimal"
        return Response(status_code=204, headers=extra)
    raw = [(name.encode(), value.encode("latin-1")) for name, value in extra.items()]
    return JSONBytes(body, headers=raw, media_type=media_type)


async def _store_once(
    request: Request,
    body: bytes,
    new: Sequence[Mapping[str, Any]],
    encode: Callable[[Sequence[Row]], bytes],
) -> bytes:
    """Stores notes, at most once for the request's Idempotency-Key, and gives them encoded."""
    loc = ("header", "idempotency-key")
    value = ", ".join(request.headers.getlist("idempotency-key"))
    key = _KEY.fullmatch(value)
    if key is None:
        mismatch = {"type": "string_pattern_mismatch", "pattern": '^"[ -~]{1,255}"$'}
        raise InvalidInput(describe(mismatch, loc, value))
    content_type = media_type(request.headers.get("content-type", ""))
    parts = (request.url.path.encode(), content_type.encode(), body)

    user = request.scope.get("user")
    user_id = None if user is None else user["id"]

    async def store(run: Run) -> bytes:
        return encode(await queries.insert_notes(new, run))

    try:
        fingerprint = idempotency.fingerprint(*parts)
        return await idempotency.once(key[1] or key[2], user_id, fingerprint, store)
    except idempotency.KeyReused:
        raise InvalidInput(describe("idempotency_key_reused", loc, value)) from None


async def create_note(request: Request) -> Response:
    body = await read_body(request)
    note = load(load_note, parse(body, request.headers.get("content-type", "")), "body")
    if "idempotency-key" in request.headers:
        stored = await _store_once(request, body, [note], lambda rows: _encode(rows[0]))
    else:
        stored = _encode(await insert_note(note))
    headers = {"etag": preferences.etag(stored)}
    minimal = preferences.wants_minimal(request)
    if minimal:
        note_id = orjson.loads(stored)["id"]
        headers["location"] = str(request.url_for("note", note_id=note_id))
    return _written(minimal, stored, headers)


async def create_notes(request: Request) -> Response:
    body = await read_body(request)
    content_type = request.headers.get("content-type", "")
    if body and media_type(content_type) == LINES:
        values = await parse_lines(body, MAX_BATCH)
    else:
        values = parse(body, content_type)
    new = await load_all(load_note, values, MAX_BATCH, "body")

    def encode(rows: Sequence[Row]) -> bytes:
        return orjson.dumps(dump(rows))

    if "idempotency-key" in request.headers:
        stored = await _store_once(request, body, new, encode)
    else:
        stored = encode(await queries.insert_notes(new))
    minimal = preferences.wants_minimal(request)
    if preferences.wants_lines(request):
        return _written(minimal, lines_of(orjson.loads(stored)), media_type=LINES)
    return _written(minimal, stored)


async def read_note(request: Request) -> Response:
    note = await get_note(_note_id(request))
    if note is None:
        raise HTTPException(404)
    body = _encode(note)
    tag = preferences.etag(body)
    if preferences.is_conditional(request):
        preferences.check(request, tag)
    return JSONBytes(body, headers=[(b"etag", tag.encode())])


async def replace_note(request: Request) -> Response:
    return await _change_note(request, load_note)


async def change_note(request: Request) -> Response:
    return await _change_note(request, note_patch.load)


async def _change_note(request: Request, deserialize: Callable[[Any], Any]) -> Response:
    note_id = _note_id(request)
    body = await read_body(request)
    changes = load(deserialize, parse(body, request.headers.get("content-type", "")), "body")
    note = await _act(request, note_id, lambda old: queries.update_note(note_id, changes, old))
    changed = _encode(note)
    minimal = preferences.wants_minimal(request)
    return _written(minimal, changed, {"etag": preferences.etag(changed)})


async def delete_note(request: Request) -> Response:
    note_id = _note_id(request)
    await _act(request, note_id, lambda old: queries.delete_note(note_id, old))
    return Response(status_code=204)


async def _act(
    request: Request, note_id: int, act: Callable[[Row | None], Awaitable[Row | bool | None]]
) -> Any:
    """Writes to a note under the request's conditions; HTTPException 404 or 412.

    A condition holds of the note as it was read, and the write of that note alone, so that of two
    clients with the same condition one wins; no lock is held in between.
    """
    if not preferences.is_conditional(request):
        if not (done := await act(None)):
            raise HTTPException(404)
        return done
    while True:
        note = await get_note(note_id)
        if note is None:
            raise HTTPException(404)
        preferences.check(request, preferences.etag(_encode(note)))
        if done := await act(note):
            return done


def _note_id(request: Request) -> int:
    """The id in the path; HTTPException 404 for what can't be one."""
    text = request.path_params["note_id"]
    if not _ID.fullmatch(text) or int(text) > MAX_ID:
        raise HTTPException(404)
    return int(text)
