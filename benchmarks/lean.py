"""The notes with asyncpg and msgspec alone, one query a request: what servers are put around."""

import os
from urllib.parse import parse_qs

import asyncpg
import msgspec


class NoteIn(msgspec.Struct):
    text: str
    completed: bool


class Note(msgspec.Struct):
    id: int
    text: str
    completed: bool


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(NoteIn).decode

pool: "asyncpg.Pool[asyncpg.Record]"


async def keep(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Saves the query with which asyncpg resets a connection; nothing here changes one."""


async def connect() -> None:
    """Opens the pool; `pool.close()` is its end."""
    global pool
    pool = await asyncpg.create_pool(
        os.environ["DATABASE_URL"],
        min_size=1,
        max_size=int(os.environ.get("DATABASE_POOL_MAX", "5")),
        reset=keep,
    )


async def respond(method: str, path: str, query: str, body: bytes) -> tuple[int, bytes]:
    """Returns the status and the body of the answer to a request."""
    if path != "/notes/":
        return await read_note(int(path.removeprefix("/notes/")))
    if method == "POST":
        return await create_note(body)
    return await list_notes(query)


async def list_notes(query: str) -> tuple[int, bytes]:
    if not query:
        rows = await pool.fetch("SELECT id, text, completed FROM notes")
    else:
        wanted = {name: values[0] for name, values in parse_qs(query).items()}
        limit = int(wanted.get("limit", 1000))
        if "q" in wanted:
            # As the service searches; PostgreSQL has an index for it where there is pg_trgm.
            rows = await pool.fetch(
                "SELECT id, text, completed FROM notes"
                ' WHERE coalesce(folded, lower(text COLLATE "C")) LIKE $1 ORDER BY id LIMIT $2',
                f"%{wanted['q'].casefold()}%",
                limit,
            )
        else:
            rows = await pool.fetch(
                "SELECT id, text, completed FROM notes WHERE id > $1 ORDER BY id LIMIT $2",
                int(wanted.get("after", 0)),
                limit,
            )
    return 200, encode([Note(*row) for row in rows])


async def read_note(note_id: int) -> tuple[int, bytes]:
    row = await pool.fetchrow("SELECT id, text, completed FROM notes WHERE id = $1", note_id)
    if row is None:
        return 404, b'{"detail":"Note not found"}'
    return 200, encode(Note(*row))


async def create_note(body: bytes) -> tuple[int, bytes]:
    note = decode(body)
    note_id = await pool.fetchval(
        "INSERT INTO notes (text, completed) VALUES ($1, $2) RETURNING id",
        note.text,
        note.completed,
    )
    return 200, encode(Note(note_id, note.text, note.completed))
