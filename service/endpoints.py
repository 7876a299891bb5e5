"""Parse, call notes, respond."""

import re
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import orjson
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from service import notes
from service.body import read_json
from service.coalescing import coalesce
from service.database import Row
from service.schemas import note_in, note_out
from service.serializing import compile_dump

dump = compile_dump(note_out)


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


def json_response(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def note_response(note: Row) -> Response:
    return json_response(dump([note])[0])


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


class Notes(HTTPEndpoint):
    """`/notes/`: one class for the path, so that a 405 names every method in `Allow`."""

    async def get(self, request: Request) -> Response:
        first = await read_page(0)
        if first.after is None:
            return Response(first.body, media_type="application/json")
        second = await read_page(first.after)
        if second.body == b"[]":
            return Response(first.body, media_type="application/json")
        if request.method == "HEAD":
            return StreamingResponse(iter(()), media_type="application/json")
        return StreamingResponse(_join(first, second), media_type="application/json")

    async def post(self, request: Request) -> Response:
        return note_response(await insert_note(note_in.load(await read_json(request))))


def note_id(request: Request) -> int:
    """The id in the path; HTTPException 404 for what can't be one."""
    text = request.path_params["note_id"]
    if not re.fullmatch("[1-9][0-9]{0,9}", text) or int(text) >= 2**31:
        raise HTTPException(404)
    return int(text)


class Note(HTTPEndpoint):
    """`/notes/{note_id}`"""

    async def get(self, request: Request) -> Response:
        note = await get_note(note_id(request))
        if note is None:
            raise HTTPException(404)
        return note_response(note)


async def home(request: Request) -> Response:
    return RedirectResponse(request.url_for("docs"))
