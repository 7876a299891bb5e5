"""marshmallow fields that read input, and name errors, as pydantic does."""

import math
import re
from datetime import UTC, date, datetime
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields

# The largest integer that all JSON parsers read exactly (RFC 8259, section 6).
MAX_ID = 2**53 - 1

# A regular expression of JSON Schema's dialect, for any text without NUL.
NO_NUL = r"^[^\u0000]*$"

# Texts that pydantic reads as a boolean, in upper or lower case.
BOOLEANS = {
    **dict.fromkeys(("1", "on", "t", "true", "y", "yes"), True),
    **dict.fromkeys(("0", "off", "f", "false", "n", "no"), False),
}
# int() reads at most 4300 digits.
INTEGER = re.compile(r"[+-]?[0-9]{1,4300}")


def is_unicode(value: str) -> bool:
    """False for a text with a lone surrogate, which UTF-8 can't encode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Text(fields.String):
    """A text that every database can store: any Unicode except NUL and lone surrogates.

    It has at most `max_length` characters; None means as many as a body may have.
    """

    default_error_messages = {
        "required": "missing",
        "null": "string_type",
        "invalid": "string_type",
    }

    def __init__(self, max_length: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_length = max_length
        bound = {} if max_length is None else {"maxLength": max_length}
        self.metadata = {**self.metadata, **bound, "pattern": NO_NUL}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if self.max_length is not None and len(value) > self.max_length:
            raise ValidationError([{"type": "string_too_long", "max_length": self.max_length}])
        if not is_unicode(value):
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
            if not is_unicode(value):
                raise ValidationError("string_unicode")
            if value.lower() in BOOLEANS:
                return BOOLEANS[value.lower()]
        elif isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        elif not self._is_integer(value):
            raise ValidationError("bool_type")
        raise self.make_error("invalid")

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> bool:
        # SQLite stores booleans as integers.
        return bool(value)

    @staticmethod
    def _is_integer(value: Any) -> bool:
        """Whether pydantic reads an integer of 64 bits, for which the error is another."""
        if isinstance(value, int):
            return -(2**63) <= value < 2**63
        return isinstance(value, float) and value.is_integer() and abs(value) < 2**63


class Integer(fields.Integer):
    """An integer as pydantic reads it in its lax mode, from `ge` to `le`."""

    default_error_messages = {"required": "missing", "null": "int_type", "invalid": "int_type"}

    def __init__(self, ge: int = -(2**31), le: int = 2**31 - 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ge = ge
        self.le = le
        self.metadata = {**self.metadata, "minimum": ge, "maximum": le}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        number = self._read(value)
        if number < self.ge:
            raise ValidationError([{"type": "greater_than_equal", "ge": self.ge}])
        if number > self.le:
            raise ValidationError([{"type": "less_than_equal", "le": self.le}])
        return number

    def _read(self, value: Any) -> int:
        if isinstance(value, str):
            if INTEGER.fullmatch(value) is None:
                raise ValidationError("int_parsing")
            return int(value)
        if isinstance(value, float) and not value.is_integer():
            raise ValidationError("int_from_float" if math.isfinite(value) else "finite_number")
        if not isinstance(value, int | float):
            raise self.make_error("invalid")
        return int(value)


class Date(fields.Date):
    """A date as YYYY-MM-DD (RFC 3339, full-date)."""

    default_error_messages = {"required": "missing", "null": "date_type", "invalid": "date_type"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> date:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        try:
            return datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).date()
        except ValueError:
            raise ValidationError("date_parsing") from None


class Choice(fields.String):
    """One of some fixed words."""

    def __init__(self, *choices: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.choices = choices

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if value not in self.choices:
            expected = " or ".join(map(repr, self.choices))
            raise ValidationError([{"type": "literal_error", "expected": expected}])
        return str(value)


class Timestamp(fields.DateTime):
    """Seconds since the epoch, written as a time in UTC (RFC 3339)."""

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> str:
        return datetime.fromtimestamp(value, UTC).isoformat().replace("+00:00", "Z")


class Input(Schema):
    """The base of all input schemas. It drops unknown keys, as FastAPI does."""

    error_messages = {"type": "model_attributes_type"}

    class Meta:
        unknown = EXCLUDE
