"""The notes on BlackSheep: msgspec structs and an asyncpg pool."""

import os
from collections.abc import AsyncIterator

import asyncpg
import msgspec
from blacksheep import Application, Content, Request, Response, get, post
from blacksheep.server.responses import not_found


class NoteIn(msgspec.Struct):
    text: str
    completed: bool


class Note(msgspec.Struct):
    id: int
    text: str
    completed: bool


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(NoteIn).decode

app = Application()
pool: "asyncpg.Pool[asyncpg.Record]"


@app.lifespan  # type: ignore[untyped-decorator]
async def connected(app: Application) -> AsyncIterator[None]:
    global pool
    async with asyncpg.create_pool(
        os.environ["DATABASE_URL"],
        min_size=1,
        max_size=int(os.environ.get("DATABASE_POOL_MAX", "5")),
    ) as pool:
        yield


def answer(content: Note | list[Note]) -> Response:
    return Response(200, content=Content(b"application/json", encode(content)))


@get("/notes/")
async def list_notes(limit: int | None = None, after: int = 0) -> Response:
    if limit is None:
        rows = await pool.fetch("SELECT id, text, completed FROM notes")
    else:
        rows = await pool.fetch(
            "SELECT id, text, completed FROM notes WHERE id > $1 ORDER BY id LIMIT $2",
            after,
            limit,
        )
    return answer([Note(*row) for row in rows])


@get("/notes/{note_id}")
async def read_note(note_id: int) -> Response:
    row = await pool.fetchrow("SELECT id, text, completed FROM notes WHERE id = $1", note_id)
    return not_found("Note not found") if row is None else answer(Note(*row))


@post("/notes/")
async def create_note(request: Request) -> Response:
    note = decode(await request.read() or b"")
    note_id = await pool.fetchval(
        "INSERT INTO notes (text, completed) VALUES ($1, $2) RETURNING id",
        note.text,
        note.completed,
    )
    return answer(Note(note_id, note.text, note.completed))
