"""Fast functions for dumping and loading, compiled from marshmallow schemas at import.

`Schema.dump` costs some microseconds for each row; a compiled comprehension costs a tenth.
`Schema.load` is a sixth of the cost of a create. The schema remains the only source of the shape.
"""

from collections.abc import Callable, Iterable
from typing import Any

import orjson
from marshmallow import EXCLUDE, Schema, fields, missing

from service.schemas.fields import (
    Boolean,
    Choice,
    Date,
    Integer,
    List,
    Text,
    Timestamp,
    is_unicode,
    read_date,
    read_time,
    write_time,
)
from service.tables import Row

# For each type of field: a Python expression that makes a column's value a value of JSON. SQLite
# stores booleans as integers. marshmallow itself dumps schemas with other types.
EXPRESSIONS = {
    fields.Boolean: "bool({value})",
    fields.Date: "{value}.isoformat()",
    Timestamp: "write_time({value})",
    List: "loads({value})",
    fields.Integer: "{value}",
    fields.String: "{value}",
}
FUNCTIONS = {"write_time": write_time, "loads": orjson.loads}


def compile_dump(schema: Schema) -> Callable[[Iterable[Row]], list[dict[str, Any]]]:
    """A function like `schema.dump(rows, many=True)`.

    A row may also have NULL where a field doesn't allow None: a new column isn't filled at once.
    """
    if schema._hooks.get("pre_dump") or schema._hooks.get("post_dump"):
        return lambda rows: schema.dump(rows, many=True)
    items = []
    for name, field in schema.dump_fields.items():
        kind = next((kind for kind in EXPRESSIONS if isinstance(field, kind)), None)
        if kind is None or getattr(field, "format", None) not in (None, "iso"):
            return lambda rows: schema.dump(rows, many=True)
        column = f"row[{field.attribute or name!r}]"
        value = EXPRESSIONS[kind].format(value=column)
        if (field.allow_none or kind is not fields.Boolean) and value != column:
            value = f"None if {column} is None else {value}"
        items.append(f"{field.data_key or name!r}: {value}")
    # The source contains only names from the schema, and no input.
    dump: Callable[[Iterable[Row]], list[dict[str, Any]]] = eval(  # noqa: S307
        f"lambda rows: [{{{', '.join(items)}}} for row in rows]", FUNCTIONS
    )
    return dump


# A value that marshmallow has to load, or refuse.
OTHER: Any = object()


def _read_text(value: Any) -> Any:
    if type(value) is str and "\0" not in value and (value.isascii() or is_unicode(value)):
        return value
    return OTHER


def _text_reader(field: Text) -> Callable[[Any], Any]:
    most = field.max_length
    if most is None:
        return _read_text
    return lambda value: OTHER if type(value) is str and len(value) > most else _read_text(value)


def _reader_with(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A function for what `read` makes of a text. It raises ValueError or OverflowError."""

    def read_or_leave(value: Any) -> Any:
        try:
            return read(value) if type(value) is str else OTHER
        except (ValueError, OverflowError):
            return OTHER

    return read_or_leave


def _list_reader(field: List) -> Callable[[Any], Any]:
    read = PLAIN[type(field.inner)](field.inner)

    def read_list(value: Any) -> Any:
        if type(value) is not list or len(value) > field.most:
            return OTHER
        found = [read(one) for one in value]
        return OTHER if OTHER in found else orjson.dumps(found).decode()

    return read_list


# For each type of field: makes a function that loads usual values, and gives OTHER for the rest.
PLAIN: dict[type[fields.Field[Any]], Callable[[Any], Callable[[Any], Any]]] = {
    Boolean: lambda field: lambda value: value if type(value) is bool else OTHER,
    Choice: lambda field: (
        lambda value: value if type(value) is str and value in field.choices else OTHER
    ),
    Date: lambda field: _reader_with(read_date),
    Integer: lambda field: (
        lambda value: value if type(value) is int and field.ge <= value <= field.le else OTHER
    ),
    List: _list_reader,
    Text: _text_reader,
    Timestamp: lambda field: _reader_with(read_time),
}


def _is_plain(field: fields.Field[Any]) -> bool:
    if isinstance(field, List) and not _is_plain(field.inner):
        return False
    return type(field) in PLAIN and not (
        field.validators or field.data_key or field.attribute or callable(field.load_default)
    )


def _reader(field: fields.Field[Any]) -> tuple[Callable[[Any], Any], Any]:
    """A function that loads usual values, and the value of a field that isn't there."""
    read = PLAIN[type(field)](field)
    # A field that is required, or has no default, is left to marshmallow.
    absent = OTHER if field.load_default is missing else field.load_default
    if not field.allow_none:
        return read, absent
    return lambda value: None if value is None else read(value), absent


def compile_usual(schema: Schema) -> Callable[[Any], Any]:
    """A function like `schema.load` for usual objects, which gives OTHER for the rest.

    In these all values are usual ones, or absent and have a default. With other fields than PLAIN,
    or hooks such as `validates`, nothing is usual.
    """
    if (
        any(schema._hooks.values())
        or schema.many
        or schema.partial
        or schema.unknown != EXCLUDE
        or not all(map(_is_plain, schema.load_fields.values()))
    ):
        return lambda data: OTHER
    readers = [(name, *_reader(field)) for name, field in schema.load_fields.items()]

    def load(data: Any) -> Any:
        if not isinstance(data, dict):
            return OTHER
        values = {}
        for name, read, absent in readers:
            value = read(data[name]) if name in data else absent
            if value is OTHER:
                return OTHER
            values[name] = value
        return values

    return load


def compile_load(schema: Schema) -> Callable[[Any], Any]:
    """A function like `schema.load`. marshmallow loads what is not usual (`compile_usual`)."""
    load_usual = compile_usual(schema)

    def load(data: Any) -> Any:
        values = load_usual(data)
        return schema.load(data) if values is OTHER else values

    return load
