"""The shape of users."""

from marshmallow import Schema, fields

from service.schemas.fields import Boolean, Timestamp

MAX_USERNAME = 64


class User(Schema):
    """A user as clients get it."""

    id = fields.Integer(required=True)
    username = fields.String(required=True)
    is_active = Boolean(required=True)
    created_at = Timestamp(required=True)


user_out = User()
