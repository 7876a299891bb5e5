"""Notes: what they are, and the operations on them."""

from service.resources.definition import Definition, Filter, Search, with_id
from service.resources.usual import Usual
from service.schemas.fields import Boolean, Input, Text
from service.settings import ACCESS
from service.tables import notes
from service.web.routing import Path, Resource


class NoteIn(Input):
    """A note as clients send it."""

    text = Text(
        required=True,
        metadata={"description": "The text of the note", "examples": ["Buy milk"]},
    )
    completed = Boolean(
        required=True,
        metadata={"description": "Whether the note is completed", "examples": [False]},
    )


NOTES = Definition(
    table=notes,
    name="note",
    new=NoteIn(),
    shape=with_id(NoteIn, "Note"),
    filters={
        "completed": Filter(notes.c.completed, "Completed notes (`true`) or open ones", True),
    },
    search=Search(notes.c.text, notes.c.folded, example="milk"),
    large=notes.c.text,
    creator=notes.c.owner_id if ACCESS == "token" else None,
    owner=notes.c.owner_id if ACCESS == "private" else None,
)
usual = Usual(NOTES, "Short texts, each completed or open.")

resource = Resource(
    usual.schemas,
    Path("/notes/", GET=usual.listing("read_notes"), POST=usual.create("create_note")),
    Path("/notes/changes", GET=usual.changes("follow_notes")),
    Path("/notes/batch", POST=usual.create_many("create_notes")),
    Path(
        "/notes/{note_id}",
        "note",
        GET=usual.read("read_note"),
        PUT=usual.replace("replace_note"),
        PATCH=usual.change("change_note"),
        DELETE=usual.delete("delete_note"),
    ),
)
