"""Notes: what they are, and the operations on them."""

from service.resources.definition import Definition, Filter, Search, with_id
from service.resources.descriptions import Descriptions
from service.resources.items import Items
from service.schemas.fields import Boolean, Input, Text
from service.tables import notes
from service.web.routing import Operation, Path, Resource


class NoteIn(Input):
    """A note as clients send it."""

    text = Text(
        required=True,
        metadata={"description": "What is to be done", "examples": ["Buy milk"]},
    )
    completed = Boolean(
        required=True, metadata={"description": "Whether it is done", "examples": [False]}
    )


NOTES = Definition(
    table=notes,
    name="note",
    new=NoteIn(),
    shape=with_id(NoteIn, "Note"),
    filters={"completed": Filter(notes.c.completed, "Only notes that are or aren't", True)},
    search=Search(notes.c.text, notes.c.folded, example="milk"),
    large=notes.c.text,
)
items = Items(NOTES)
describe = Descriptions(NOTES, "Short texts, each of them done or not.")

resource = Resource(
    describe.schemas,
    Path(
        "/notes/",
        GET=Operation("read_notes", items.listing, describe.listing()),
        POST=Operation("create_note", items.create, describe.create()),
    ),
    Path(
        "/notes/batch",
        POST=Operation("create_notes", items.create_many, describe.create_many()),
    ),
    Path(
        "/notes/{note_id}",
        "note",
        GET=Operation("read_note", items.read, describe.read()),
        PUT=Operation("replace_note", items.replace, describe.replace()),
        PATCH=Operation("change_note", items.change, describe.change()),
        DELETE=Operation("delete_note", items.delete, describe.delete()),
    ),
)
