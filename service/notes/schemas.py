"""The marshmallow schemas: the one place where the shape of notes and users is written."""

from marshmallow import EXCLUDE, Schema, fields

from service.schemas.fields import Boolean, Choice, QueryInteger, QueryText, Text, Timestamp

# The largest integer that JSON's readers take exactly (RFC 8259, section 6).
MAX_ID = 2**53 - 1
MAX_PAGE = 1000
MAX_BATCH = 1000
# PostgreSQL can't break off the search of one note, which takes as long as the note's length times
# this: up to two seconds for a note of 1 MB.
MAX_Q = 200
MAX_USERNAME = 64


class Input(Schema):
    """Input of any kind: unknown keys are dropped, as FastAPI does."""

    error_messages = {"type": "model_attributes_type"}

    class Meta:
        unknown = EXCLUDE


class NoteIn(Input):
    """A note as clients send it."""

    text = Text(required=True)
    completed = Boolean(required=True)


class Note(NoteIn):
    """A note as clients get it."""

    class Meta:
        # Inherited fields come first otherwise.
        fields = ("id", "text", "completed")

    id = fields.Integer(required=True)


class ListingQuery(Input):
    """The query of a listing of notes."""

    limit = QueryInteger(1, MAX_PAGE, load_default=None)
    after = QueryInteger(0, MAX_ID, load_default=None)
    order = Choice("asc", "desc", load_default="asc")
    completed = Boolean(load_default=None)
    q = QueryText(MAX_Q, load_default="")


class User(Schema):
    """A user as clients get it."""

    id = fields.Integer(required=True)
    username = fields.String(required=True)
    is_active = Boolean(required=True)
    created_at = Timestamp(required=True)


note_in = NoteIn()
note_patch = NoteIn(partial=True)
note_out = Note()
listing_query = ListingQuery()
user_out = User()
