"""What the descriptions of every resource are made of."""

from typing import Any


def tag(name: str, description: str) -> dict[str, Any]:
    """The heading under which an operation stands."""
    return {"tags": [{"name": name, "description": description}]}


def json_content(schema: str | dict[str, Any]) -> dict[str, Any]:
    """A body of JSON: a component's name, or a schema."""
    if isinstance(schema, str):
        schema = {"$ref": f"#/components/schemas/{schema}"}
    return {"content": {"application/json": {"schema": schema}}}


def response(description: str, schema: str | dict[str, Any]) -> dict[str, Any]:
    return {"description": description, **json_content(schema)}


def header(description: str, example: Any, schema_type: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": schema_type, "examples": [example]}}


def parameter(
    place: str, name: str, description: str, example: Any, **schema: Any
) -> dict[str, Any]:
    """A parameter; only one in the path is required.

    The page at /docs fills in what is required, and leaves the rest to the reader.
    """
    required = place == "path"
    title = name.replace("_", " ").title()
    return {
        "name": name,
        "in": place,
        "required": required,
        "description": description,
        **({"example": example} if required else {}),
        "schema": {"title": title, **schema, **({} if required else {"examples": [example]})},
    }


UNPARSABLE = {"400": response("The body can't be decoded", "Error")}
TOO_LARGE = {"413": response("The body is too large", "Error")}
ENCODED = {
    "415": {
        **response("The body must not have a Content-Encoding", "Error"),
        "headers": {"Accept-Encoding": header("The encoding that is accepted", "identity")},
    }
}
INVALID = {"422": response("Validation Error", "HTTPValidationError")}
UNAVAILABLE = {
    "503": {
        **response("The database is unavailable, full or slow", "Error"),
        "headers": {
            "Retry-After": header("The number of seconds to wait before another try", 1, "integer")
        },
    }
}
BODY_ERRORS = {**UNPARSABLE, **TOO_LARGE, **ENCODED, **INVALID, **UNAVAILABLE}

# RFC 9110, section 8.8.3.
_TAG = r'(W/)?"[!#-~\u0080-\u00ff]*"'
TAGS = rf"^(\*|{_TAG}([ \t]*,[ \t]*{_TAG})*)$"
IF_MATCH = parameter(
    "header",
    "If-Match",
    "Entity tags, or `*`. If none of them is the current `ETag`, the answer is a 412. Include"
    " the quotes of a tag.",
    '"5d3f0a0c7e2b4f6a8c9d0e1f"',
    type="string",
    pattern=TAGS,
)
IF_NONE_MATCH = parameter(
    "header",
    "If-None-Match",
    "Entity tags, or `*`. If one of them is the current `ETag`, a read gets a 304, a write a 412.",
    '"5d3f0a0c7e2b4f6a8c9d0e1f"',
    type="string",
    pattern=TAGS,
)
PREFER = parameter(
    "header",
    "Prefer",
    "`return=minimal` asks for an answer without a body (RFC 7240)",
    "return=representation",
    type="string",
)
KEY = parameter(
    "header",
    "Idempotency-Key",
    "Makes a retry safe. For 24 hours a request with the same key and body gets the first answer,"
    " and stores nothing more. The same key with another body is a 422.",
    "8e03978e-40d5-43e8-bc93-6894a57f9324",
    type="string",
    pattern=r'^("[ !#-\[\]-~]{1,255}"|[!#-~]{1,255})$',
)
