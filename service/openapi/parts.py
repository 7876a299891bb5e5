"""What the descriptions of every resource are made of."""

from typing import Any


def json_content(schema: str | dict[str, Any]) -> dict[str, Any]:
    """A body of JSON: a component's name, or a schema."""
    if isinstance(schema, str):
        schema = {"$ref": f"#/components/schemas/{schema}"}
    return {"content": {"application/json": {"schema": schema}}}


def response(description: str, schema: str | dict[str, Any]) -> dict[str, Any]:
    return {"description": description, **json_content(schema)}


def header(description: str, schema_type: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": schema_type}}


def parameter(place: str, name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": {"title": name.replace("_", " ").title(), **schema},
    }


UNPARSABLE = {"400": response("The body can't be decoded", "Error")}
TOO_LARGE = {"413": response("The body is over the limit", "Error")}
INVALID = {"422": response("Validation Error", "HTTPValidationError")}
UNAVAILABLE = {
    "503": {
        **response("The database is away, full or slow", "Error"),
        "headers": {"Retry-After": header("Seconds to wait", "integer")},
    }
}
BODY_ERRORS = {**UNPARSABLE, **TOO_LARGE, **INVALID, **UNAVAILABLE}
