"""The shape of users."""

from marshmallow import Schema, fields

from service.schemas.fields import Boolean, Timestamp

MAX_USERNAME = 64


class User(Schema):
    """A user as clients get it."""

    id = fields.Integer(
        required=True,
        metadata={"description": "Given by the service, and never again", "examples": [1]},
    )
    username = fields.String(
        required=True, metadata={"description": "In lower case", "examples": ["bob"]}
    )
    is_active = Boolean(
        required=True, metadata={"description": "Whether the token counts", "examples": [True]}
    )
    created_at = Timestamp(
        required=True,
        metadata={"description": "In UTC", "examples": ["2026-02-28T12:00:00Z"]},
    )


user_out = User()
