"""The shape of notes and of a listing's query."""

from marshmallow import fields

from service.schemas.fields import MAX_ID, Boolean, Choice, Input, Integer, QueryText, Text

MAX_PAGE = 1000
MAX_BATCH = 1000
# PostgreSQL can't interrupt the search in one note. Its duration grows with the note's length times
# this: up to two seconds for 1 MB.
MAX_Q = 200


class NoteIn(Input):
    """A note as clients send it."""

    text = Text(
        required=True,
        metadata={"description": "What is to be done", "examples": ["Buy milk"]},
    )
    completed = Boolean(
        required=True, metadata={"description": "Whether it is done", "examples": [False]}
    )


class Note(NoteIn):
    """A note as clients get it."""

    class Meta:
        # Without this, inherited fields come first.
        fields = ("id", *NoteIn._declared_fields)

    id = fields.Integer(
        required=True,
        metadata={"description": "Given by the service, and never again", "examples": [1]},
    )


class ListingQuery(Input):
    """The query of a listing of notes."""

    limit = Integer(1, MAX_PAGE, load_default=None)
    after = Integer(0, MAX_ID, load_default=None)
    order = Choice("asc", "desc", load_default="asc")
    completed = Boolean(load_default=None)
    q = QueryText(MAX_Q, load_default="")


note_in = NoteIn()
note_patch = NoteIn(partial=True)
note_out = Note()
listing_query = ListingQuery()
