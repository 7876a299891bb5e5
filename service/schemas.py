"""The marshmallow schemas: the one place where the shape of notes and users is written."""

from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, pre_load

from service.fields import Boolean, Choice, QueryInteger, QueryText, Text, Timestamp

MAX_ID = 2**31 - 1
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


class Batch(NoteIn):
    """An array of notes as clients send them; made with `many=True`."""

    @pre_load(pass_collection=True)
    def check_length(self, data: Any, **kwargs: Any) -> Any:
        if not isinstance(data, list):
            raise ValidationError("list_type")
        length = {"field_type": "List", "min_length": 1, "actual_length": len(data)}
        if not data:
            raise ValidationError([{"type": "too_short", **length}])
        if len(data) > MAX_BATCH:
            length = {"field_type": "List", "max_length": MAX_BATCH, "actual_length": len(data)}
            raise ValidationError([{"type": "too_long", **length}])
        return data


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
batch_in = Batch(many=True)
listing_query = ListingQuery()
user_out = User()
