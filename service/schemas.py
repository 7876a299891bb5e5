"""The marshmallow schemas: the one place where a note's shape is written.

The messages of these fields are the type names of FastAPI's validation errors; errors.py turns
them into the bodies that clients see.
"""

from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields

# What pydantic takes for a boolean in text, in any case.
BOOLEANS = {
    **dict.fromkeys(("1", "on", "t", "true", "y", "yes"), True),
    **dict.fromkeys(("0", "off", "f", "false", "n", "no"), False),
}


def _is_unicode(value: str) -> bool:
    """False where a lone surrogate keeps the text from being encoded."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Text(fields.String):
    """Text that every database can store: any Unicode but NUL and lone surrogates."""

    default_error_messages = {
        "required": "missing",
        "null": "string_type",
        "invalid": "string_type",
    }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if not _is_unicode(value):
            raise ValidationError("string_unicode")
        if "\0" in value:
            raise ValidationError("string_nul")
        return value


class Boolean(fields.Boolean):
    """A boolean as pydantic reads it in its lax mode."""

    default_error_messages = {
        "required": "missing",
        "null": "bool_type",
        "invalid": "bool_parsing",
    }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str):
            if not _is_unicode(value):
                raise ValidationError("string_unicode")
            if value.lower() in BOOLEANS:
                return BOOLEANS[value.lower()]
        elif isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        elif not self._is_integer(value):
            raise ValidationError("bool_type")
        raise self.make_error("invalid")

    @staticmethod
    def _is_integer(value: Any) -> bool:
        """Whether pydantic sees a number of 64 bits, which names another error."""
        if isinstance(value, int):
            return -(2**63) <= value < 2**63
        return isinstance(value, float) and value.is_integer() and abs(value) < 2**63


class NoteIn(Schema):
    """A note as clients send it."""

    error_messages = {"type": "model_attributes_type"}

    class Meta:
        unknown = EXCLUDE

    text = Text(required=True)
    completed = Boolean(required=True)


class Note(NoteIn):
    """A note as clients get it."""

    class Meta:
        # Inherited fields come first otherwise.
        fields = ("id", "text", "completed")

    id = fields.Integer(required=True)


note_in = NoteIn()
note_out = Note()
