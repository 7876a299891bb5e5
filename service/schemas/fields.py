"""marshmallow fields that read input, and name errors, as pydantic does."""

import math
import re
from datetime import UTC, date, datetime
from typing import Any

import orjson
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
# RFC 3339, section 5.6, without leap seconds.
TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(\.[0-9]+)?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


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
            return read_date(value)
        except ValueError:
            raise ValidationError("date_parsing") from None


def read_date(text: str) -> date:
    """Raises ValueError for other forms than YYYY-MM-DD."""
    # fromisoformat() knows weeks too, and dates without hyphens.
    if len(text) != 10 or not text[4] == text[7] == "-":
        raise ValueError(text)
    return date.fromisoformat(text)


class Choice(fields.String):
    """One of some fixed words."""

    default_error_messages = {"required": "missing"}

    def __init__(self, *choices: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.choices = choices
        *others, last = map(repr, choices)
        expected = f"{', '.join(others)} or {last}" if others else last
        self._invalid = {"type": "literal_error", "expected": expected}
        self.error_messages["null"] = [self._invalid]
        # The document of a field that may be null names null, too.
        null = [None] if self.allow_none else []
        self.metadata = {**self.metadata, "enum": [*choices, *null]}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if value not in self.choices:
            raise ValidationError([self._invalid])
        return str(value)


class Timestamp(fields.DateTime):
    """Seconds since the epoch, read and written as a time (RFC 3339, date-time).

    It is written in UTC. Fractions of a second are dropped.
    """

    default_error_messages = {
        "required": "missing",
        "null": "datetime_type",
        "invalid": "datetime_type",
    }

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else write_time(value)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        try:
            return read_time(value)
        except (ValueError, OverflowError):
            raise ValidationError("datetime_parsing") from None


def write_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def read_time(text: str) -> int:
    """Raises ValueError, or OverflowError for a time outside of the years 1 to 9999 in UTC."""
    if TIME.fullmatch(text) is None:
        raise ValueError(text)
    read = datetime.fromisoformat(text.upper()).astimezone(UTC)
    return int(read.replace(microsecond=0).timestamp())


class List(fields.List[Any]):
    """A list of at most `most` values of a field, stored as JSON in a text.

    So it needs no type that databases lack, or compare in different ways. The column is a String
    without a length, NOT NULL.
    """

    default_error_messages = {"required": "missing", "null": "list_type", "invalid": "list_type"}

    def __init__(self, inner: Text | Integer, most: int, **kwargs: Any) -> None:
        if isinstance(inner, Text) and inner.max_length is None:
            raise ValueError("the texts of a list need a max_length")
        super().__init__(inner, **kwargs)
        self.most = most
        self.metadata = {**self.metadata, "maxItems": most}

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> Any:
        return None if value is None else orjson.loads(value)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        if len(value) > self.most:
            lengths = {"max_length": self.most, "actual_length": len(value)}
            raise ValidationError([{"type": "too_long", "field_type": "List", **lengths}])
        return orjson.dumps(super()._deserialize(value, attr, data, **kwargs)).decode()


class Input(Schema):
    """The base of all input schemas. It drops unknown keys, as FastAPI does."""

    error_messages = {"type": "model_attributes_type"}

    class Meta:
        unknown = EXCLUDE
