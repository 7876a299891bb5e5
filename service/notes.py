"""What can be done with notes: one statement each, no HTTP in sight."""

from databases.interfaces import Record

from service.database import available, database
from service.tables import notes


async def list_notes() -> list[Record]:
    """All notes, in the order of their ids."""
    async with available():
        return await database.fetch_all(notes.select().order_by(notes.c.id))


async def insert_note(text: str, completed: bool) -> Record:
    """Stores a note and returns it with its id."""
    statement = notes.insert().values(text=text, completed=completed).returning(*notes.c)
    async with available():
        note = await database.fetch_one(statement)
    assert note is not None
    return note
