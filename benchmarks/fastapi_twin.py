"""FastAPI's "Async SQL (Relational) Databases" example, on today's FastAPI.

The tests compare the service with this app, so it is kept as close to the example as it gets.
Whoever runs it makes the table.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import databases
import sqlalchemy
from fastapi import FastAPI
from pydantic import BaseModel

DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite:///./twin.db")
# encode/databases takes another driver for a plain mysql://.
DATABASE_URL = DATABASE_URL.replace("mysql://", "mysql+asyncmy://", 1)


def pool_options(url: str) -> dict[str, Any]:
    """Returns the pool's size; SQLite has no pool."""
    if not url.startswith("postgres"):
        return {}
    return {"min_size": 1, "max_size": int(os.environ.get("DATABASE_POOL_MAX", "5"))}


database = databases.Database(DATABASE_URL, **pool_options(DATABASE_URL))

metadata = sqlalchemy.MetaData()

notes = sqlalchemy.Table(
    "notes",
    metadata,
    sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column("text", sqlalchemy.String),
    sqlalchemy.Column("completed", sqlalchemy.Boolean),
)


class NoteIn(BaseModel):
    text: str
    completed: bool


class Note(BaseModel):
    id: int
    text: str
    completed: bool


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await database.connect()
    yield
    await database.disconnect()


app = FastAPI(lifespan=lifespan)


@app.get("/notes/", response_model=list[Note])
async def read_notes() -> Any:
    query = notes.select()
    return await database.fetch_all(query)


@app.post("/notes/", response_model=Note)
async def create_note(note: NoteIn) -> Any:
    query = notes.insert().values(text=note.text, completed=note.completed)
    last_record_id = await database.execute(query)
    return {**note.model_dump(), "id": last_record_id}
