"""The FastAPI twin with a route for one note, which the example itself does not have."""

from typing import Any

from fastapi import HTTPException

from benchmarks.fastapi_twin import Note, app, database, notes

__all__ = ["app"]


@app.get("/notes/{note_id}", response_model=Note)
async def read_note(note_id: int) -> Any:
    note = await database.fetch_one(notes.select().where(notes.c.id == note_id))
    if note is None:
        raise HTTPException(status_code=404, detail="Note not found")
    return note
