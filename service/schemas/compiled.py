"""Fast functions for dumping and loading, compiled from marshmallow schemas at import.

`Schema.dump` costs some microseconds for each row; a compiled comprehension costs a tenth.
`Schema.load` is a sixth of the cost of a create. The schema remains the only source of the shape.
"""

from collections.abc import Callable, Iterable
from typing import Any

from marshmallow import EXCLUDE, Schema, fields

from service.schemas.fields import Boolean, Integer, Text, is_unicode
from service.tables import Row

# For each type of field: a Python expression that makes a column's value a value of JSON. SQLite
# stores booleans as integers. marshmallow itself dumps schemas with other types.
EXPRESSIONS = {
    fields.Boolean: "bool({value})",
    fields.Date: "{value}.isoformat()",
    fields.Integer: "{value}",
    fields.String: "{value}",
}


def compile_dump(schema: Schema) -> Callable[[Iterable[Row]], list[dict[str, Any]]]:
    """A function like `schema.dump(rows, many=True)`.

    A row may have NULL only for a field that allows None.
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
    # The source contains only names from the schema, and no input.
    dump: Callable[[Iterable[Row]], list[dict[str, Any]]] = eval(  # noqa: S307
        f"lambda rows: [{{{', '.join(items)}}} for row in rows]"
    )
    return dump


def _is_text(value: Any) -> bool:
    return type(value) is str and "\0" not in value and (value.isascii() or is_unicode(value))


def _is_text_of(max_length: int | None) -> Callable[[Any], bool]:
    if max_length is None:
        return _is_text
    return lambda value: _is_text(value) and len(value) <= max_length


# For each type of field: makes a function that finds values which need no conversion.
PLAIN: dict[type[fields.Field[Any]], Callable[[Any], Callable[[Any], bool]]] = {
    Boolean: lambda field: lambda value: type(value) is bool,
    Integer: lambda field: lambda value: type(value) is int and field.ge <= value <= field.le,
    Text: lambda field: _is_text_of(field.max_length),
}


def _is_plain(field: fields.Field[Any]) -> bool:
    return type(field) in PLAIN and not (field.validators or field.data_key or field.attribute)


def compile_load(schema: Schema) -> Callable[[Any], Any]:
    """A function like `schema.load`, for a schema without hooks.

    It takes an object directly if all values are present and need no conversion. Otherwise
    marshmallow loads it. For a schema with other fields than PLAIN, marshmallow loads everything.
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
