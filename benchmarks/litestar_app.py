"""The notes on Litestar: msgspec structs and an asyncpg pool."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import msgspec
from litestar import Litestar, get, post
from litestar.datastructures import State
from litestar.exceptions import NotFoundException


class NoteIn(msgspec.Struct):
    text: str
    completed: bool


class Note(msgspec.Struct):
    id: int
    text: str
    completed: bool


@get("/notes/")
async def list_notes(state: State, limit: int | None = None, after: int = 0) -> list[Note]:
    if limit is None:
        rows = await state.pool.fetch("SELECT id, text, completed FROM notes")
    else:
        rows = await state.pool.fetch(
            "SELECT id, text, completed FROM notes WHERE id > $1 ORDER BY id LIMIT $2",
            after,
            limit,
        )
    return [Note(*row) for row in rows]


@get("/notes/{note_id:int}")
async def read_note(state: State, note_id: int) -> Note:
    row = await state.pool.fetchrow("SELECT id, text, completed FROM notes WHERE id = $1", note_id)
    if row is None:
        raise NotFoundException("Note not found")
    return Note(*row)


@post("/notes/", status_code=200)
async def create_note(state: State, data: NoteIn) -> Note:
    row = await state.pool.fetchrow(
        "INSERT INTO notes (text, completed) VALUES ($1, $2) RETURNING id, text, completed",
        data.text,
        data.completed,
    )
    return Note(*row)


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    pool = asyncpg.create_pool(
        os.environ["DATABASE_URL"],
        min_size=1,
        max_size=int(os.environ.get("DATABASE_POOL_MAX", "5")),
    )
    async with pool:
        app.state.pool = pool
        yield


app = Litestar(
    [list_notes, read_note, create_note],
    lifespan=[lifespan],
    openapi_config=None,
    logging_config=None,
)
