"""Loads input with marshmallow, and describes errors in FastAPI's words.

The fields' messages are the type names of FastAPI's validation errors. A message with details is a
dictionary of `type` and the details.
"""

from collections.abc import Callable, Iterator
from typing import Any

from marshmallow import ValidationError
from marshmallow.exceptions import SCHEMA

from service.schemas.slices import in_slices

# FastAPI's message for each of its error types.
MESSAGES = {
    "bool_parsing": "Input should be a valid boolean, unable to interpret input",
    "bool_type": "Input should be a valid boolean",
    "cursor_invalid": "Input should be a cursor from a Link header, with the same sort",
    "date_parsing": "Input should be a valid date in the format YYYY-MM-DD",
    "date_type": "Input should be a valid date",
    "datetime_parsing": "Input should be a valid datetime in the format YYYY-MM-DDTHH:MM:SSZ",
    "datetime_type": "Input should be a valid datetime",
    "event_id": "Input should be the id of an event, or 0",
    "extra_forbidden": "Extra inputs are not permitted",
    "finite_number": "Input should be a finite number",
    "greater_than_equal": "Input should be greater than or equal to {ge}",
    "idempotency_key_reused": "The key was used before, for a different request",
    "int_from_float": "Input should be a valid integer, got a number with a fractional part",
    "int_parsing": "Input should be a valid integer, unable to parse string as an integer",
    "int_type": "Input should be a valid integer",
    "json_invalid": "JSON decode error",
    "less_than_equal": "Input should be less than or equal to {le}",
    "list_type": "Input should be a valid list",
    "literal_error": "Input should be {expected}",
    "missing": "Field required",
    "not_found": "No item has this value",
    "not_unique": "Another item already has this value",
    "model_attributes_type": "Input should be a valid dictionary or object to extract fields from",
    "string_nul": "Input should be a valid string without NUL characters",
    "string_pattern_mismatch": "String should match pattern '{pattern}'",
    "string_too_long": "String should have at most {max_length} characters",
    "string_type": "Input should be a valid string",
    "string_unicode": (
        "Input should be a valid string, unable to parse raw data as a unicode string"
    ),
    "too_long": "List should have at most {max_length} items after validation, not {actual_length}",
    "too_short": (
        "List should have at least {min_length} item after validation, not {actual_length}"
    ),
}

Loc = tuple[str | int, ...]


class InvalidInput(Exception):
    """The errors for a 422, in FastAPI's shape."""

    def __init__(self, *errors: dict[str, Any]) -> None:
        super().__init__(errors)
        self.errors = errors


class Conflict(InvalidInput):
    """The errors for a 409, in the same shape: other items have what the input wants."""


def describe(message: str | dict[str, Any], loc: Loc, value: Any) -> dict[str, Any]:
    """One error in FastAPI's words. A message of marshmallow stays as it is."""
    details = dict(message) if isinstance(message, dict) else {"type": message}
    type_name = details.pop("type")
    text = MESSAGES.get(type_name)
    if text is None:
        return {"type": "value_error", "loc": loc, "msg": type_name, "input": value}
    error = {"type": type_name, "loc": loc, "msg": text.format(**details), "input": value}
    return error | {"ctx": details} if details else error


def load(deserialize: Callable[[Any], Any], data: Any, *loc: str) -> Any:
    """Loads the data. Raises InvalidInput with all errors, in the order of the fields."""
    try:
        return deserialize(data)
    except ValidationError as error:
        # The traceback's frames in marshmallow hold the error and the data: a reference cycle.
        raise InvalidInput(*_walk(error.messages, data, loc)) from error.with_traceback(None)


async def load_all(deserialize: Callable[[Any], Any], data: Any, most: int, *loc: str) -> list[Any]:
    """Loads the items of an array. Raises InvalidInput with the errors of all items.

    If the data is not an array, is empty or has more than `most` items, this is the only error.
    """
    if not isinstance(data, list):
        raise InvalidInput(describe("list_type", loc, data))
    if not 1 <= len(data) <= most:
        bound = {"max_length": most} if data else {"min_length": 1}
        length = {"field_type": "List", **bound, "actual_length": len(data)}
        kind = "too_long" if data else "too_short"
        raise InvalidInput(describe({"type": kind, **length}, loc, data))
    errors: list[dict[str, Any]] = []

    def load_item(place: tuple[int, Any]) -> Any:
        index, item = place
        try:
            return deserialize(item)
        except ValidationError as error:
            errors.extend(_walk(error.messages, item, (*loc, index)))
            error.with_traceback(None)

    loaded = await in_slices(load_item, enumerate(data))
    if errors:
        raise InvalidInput(*errors)
    return loaded


def _walk(messages: Any, data: Any, loc: Loc) -> Iterator[dict[str, Any]]:
    """Finds all errors. marshmallow's messages have the same nesting as the data."""
    if isinstance(messages, list):
        for message in messages:
            yield describe(message, loc, data)
        return
    for key, nested in messages.items():
        if key == SCHEMA:
            yield from _walk(nested, data, loc)
        elif nested == ["missing"]:
            yield describe("missing", (*loc, key), data)
        else:
            # A check of the whole object may name a field that isn't there.
            there = not isinstance(data, dict) or key in data
            yield from _walk(nested, data[key] if there else data, (*loc, key))
