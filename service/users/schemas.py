"""The shape of users, and of their tokens."""

from marshmallow import Schema, fields

from service.schemas.fields import Boolean, Timestamp

MAX_USERNAME = 64


class User(Schema):
    """A user as clients get it."""

    id = fields.Integer(
        required=True,
        metadata={
            "description": "The service assigns it, and never uses it twice",
            "examples": [1],
        },
    )
    username = fields.String(
        required=True, metadata={"description": "The name, in lower case", "examples": ["bob"]}
    )
    is_active = Boolean(
        required=True,
        metadata={
            "description": "Whether the service accepts the user's tokens",
            "examples": [True],
        },
    )
    created_at = Timestamp(
        required=True,
        metadata={
            "description": "The time when the user was added, in UTC",
            "examples": ["2026-02-28T12:00:00Z"],
        },
    )


class Token(Schema):
    """A token as operators see it."""

    read_only = Boolean()
    expires_at = Timestamp()
    last_used_at = Timestamp()


user_out = User()
token_out = Token()
