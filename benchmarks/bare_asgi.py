"""The notes without a framework: what ASGI, asyncpg and one query a request can give."""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import asyncpg
import msgspec

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class NoteIn(msgspec.Struct):
    text: str
    completed: bool


class Note(msgspec.Struct):
    id: int
    text: str
    completed: bool


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(NoteIn).decode


async def keep(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Saves the query with which asyncpg resets a connection; nothing here changes one."""


pool: "asyncpg.Pool[asyncpg.Record]"


async def list_notes() -> tuple[int, bytes]:
    rows = await pool.fetch("SELECT id, text, completed FROM notes")
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


async def read_body(receive: Receive) -> bytes:
    chunks = []
    more = True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


async def lifespan(receive: Receive, send: Send) -> None:
    """Keeps the pool open between the startup and the shutdown."""
    global pool
    await receive()
    async with asyncpg.create_pool(
        os.environ["DATABASE_URL"],
        min_size=1,
        max_size=int(os.environ.get("DATABASE_POOL_MAX", "5")),
        reset=keep,
    ) as pool:
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Answer one request, or run the lifespan."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    path = scope["path"]
    if path != "/notes/":
        status, body = await read_note(int(path.removeprefix("/notes/")))
    elif scope["method"] == "POST":
        status, body = await create_note(await read_body(receive))
    else:
        status, body = await list_notes()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
