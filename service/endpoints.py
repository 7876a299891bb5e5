"""Parse, call notes, respond."""

import re
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from service import notes
from service.body import read_json
from service.coalescing import coalesce
from service.database import Row
from service.resources import JSONBytes
from service.schemas import note_in, note_out
from service.serializing import compile_dump

dump = compile_dump(note_out)
_NOTE_ID = re.compile("[1-9][0-9]{0,9}").fullmatch


class Page(NamedTuple):
    """Some notes in a row, as a JSON array, and the id to go on after; None at the end."""

    body: bytes
    after: int | None


async def _read_page(afters: list[int]) -> list[Page]:
    rows = await notes.list_notes(afters[0])
    after = rows[-1]["id"] if len(rows) in (notes.PAGE, notes.FEW) else None
    return [Page(orjson.dumps(dump(rows)), after)] * len(afters)


async def _get_notes(note_ids: list[int]) -> Sequence[Row | None]:
    found = await notes.get_notes(set(note_ids))
    return [found.get(note_id) for note_id in note_ids]


# The bodies of a hundred creates, each as large as MAX_BODY_BYTES, still fit into one statement.
read_page = coalesce(_read_page, most=10_000, key=lambda after: after)
get_note = coalesce(_get_notes, most=1_000)
insert_note = coalesce(notes.insert_notes, most=100)


def note_response(note: Row) -> Response:
    return JSONBytes(orjson.dumps(dump([note])[0]))


async def _join(*pages: Page) -> AsyncIterator[bytes]:
    """The array of all notes: those of the pages, which follow each other, and the rest."""
    first, *others = pages
    yield first.body[:-1]
    for page in others:
        yield b"," + page.body[1:-1]
    after = pages[-1].after
    while after is not None:
        page = await read_page(after)
        if page.body != b"[]":
            yield b"," + page.body[1:-1]
        after = page.after
    yield b"]"


async def read_notes(request: Request) -> Response:
    first = await read_page(0)
    if first.after is None:
        return JSONBytes(first.body)
    second = await read_page(first.after)
    if second.body == b"[]":
        return JSONBytes(first.body)
    pages = _join(first, second) if request.method == "GET" else iter(())
    return StreamingResponse(pages, media_type="application/json")


async def create_note(request: Request) -> Response:
    return note_response(await insert_note(note_in.load(await read_json(request))))


async def read_note(request: Request) -> Response:
    note = await get_note(_note_id(request))
    if note is None:
        raise HTTPException(404)
    return note_response(note)


def _note_id(request: Request) -> int:
    """The id in the path; HTTPException 404 for what can't be one."""
    text = request.path_params["note_id"]
    if not _NOTE_ID(text) or int(text) >= 2**31:
        raise HTTPException(404)
    return int(text)


async def home(request: Request) -> Response:
    return RedirectResponse(request.url_for("docs"))
