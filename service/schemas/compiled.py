"""Rows to JSON and JSON to values, by functions made from marshmallow schemas at import.

`Schema.dump` takes some microseconds a row; a comprehension that the schema spells out, and
orjson, take a tenth of that. `Schema.load` takes a sixth of all that a create costs. The schema
stays the one source of the shape.
"""

from collections.abc import Callable, Iterable
from typing import Any

from marshmallow import EXCLUDE, Schema, fields

from service.schemas.fields import Boolean, Integer, Text, is_unicode
from service.tables import Row

# How a field of each type turns a column's value into JSON's, in Python. SQLite keeps booleans as
# integers. A schema with a field of any other type is dumped by marshmallow.
EXPRESSIONS = {
    fields.Boolean: "bool({value})",
    fields.Date: "{value}.isoformat()",
    fields.Integer: "{value}",
    fields.String: "{value}",
}


def compile_dump(schema: Schema) -> Callable[[Iterable[Row]], list[dict[str, Any]]]:
    """A function that equals `schema.dump(rows, many=True)`.

    For rows that have NULL only where the field allows None.
    """
    items = []
    for name, field in schema.dump_fields.items():
        kind = next((kind for kind in EXPRESSIONS if isinstance(field, kind)), None)
        if kind is None or getattr(field, "format", None) not in (None, "iso"):
            return lambda rows: schema.dump(rows, many=True)
        column = f"row[{field.attribute or name!r}]"
        value = EXPRESSIONS[kind].format(value=column)
        if field.allow_none and value != column:
            value = f"None if {column} is None else {value}"
        items.append(f"{field.data_key or name!r}: {value}")
    # The source has nothing in it but the schema's own names.
    dump: Callable[[Iterable[Row]], list[dict[str, Any]]] = eval(  # noqa: S307
        f"lambda rows: [{{{', '.join(items)}}} for row in rows]"
    )
    return dump


def _is_text(value: Any) -> bool:
    return type(value) is str and "\0" not in value and (value.isascii() or is_unicode(value))


# Makes the function that tells, for a field of each type, what it takes as it is.
PLAIN: dict[type[fields.Field[Any]], Callable[[Any], Callable[[Any], bool]]] = {
    Boolean: lambda field: lambda value: type(value) is bool,
    Integer: lambda field: lambda value: type(value) is int and field.ge <= value <= field.le,
    Text: lambda field: _is_text,
}


def _is_plain(field: fields.Field[Any]) -> bool:
    return type(field) in PLAIN and not (field.validators or field.data_key or field.attribute)


def compile_load(schema: Schema) -> Callable[[Any], Any]:
    """A function that equals `schema.load`, for a schema without hooks.

    An object whose values are all there and need no conversion is taken as it is; everything else
    goes through marshmallow, and all of a schema that has more to it than PLAIN fields.
    """
    if (
        schema.many
        or schema.unknown != EXCLUDE
        or not all(map(_is_plain, schema.load_fields.values()))
    ):
        return schema.load
    checks = [(name, PLAIN[type(field)](field)) for name, field in schema.load_fields.items()]

    def load(data: Any) -> Any:
        if isinstance(data, dict):
            values = {name: data[name] for name, is_plain in checks if is_plain(data.get(name))}
            if len(values) == len(checks):
                return values
        return schema.load(data)

    return load
