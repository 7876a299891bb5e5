"""The OpenAPI document, made from the schemas and the routes."""

import re
from collections.abc import Iterable
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from starlette.routing import BaseRoute, Route

from service import __version__
from service.resources import Resource
from service.schemas import MAX_BATCH, MAX_ID, MAX_PAGE, note_in, note_out, note_patch

# Names and titles are those of the FastAPI example's document, so that clients generated from
# either are the same.
VALIDATION_ERROR = {
    "type": "object",
    "title": "ValidationError",
    "properties": {
        "loc": {
            "type": "array",
            "title": "Location",
            "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        },
        "msg": {"type": "string", "title": "Message"},
        "type": {"type": "string", "title": "Error Type"},
        "input": {"title": "Input"},
        "ctx": {"type": "object", "title": "Context"},
    },
    "required": ["loc", "msg", "type"],
}
HTTP_VALIDATION_ERROR = {
    "type": "object",
    "title": "HTTPValidationError",
    "properties": {
        "detail": {
            "type": "array",
            "title": "Detail",
            "items": {"$ref": "#/components/schemas/ValidationError"},
        }
    },
}
ERROR = {
    "type": "object",
    "title": "Error",
    "properties": {"detail": {"type": "string", "title": "Detail"}},
    "required": ["detail"],
}


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
NOT_FOUND = {"404": response("There is no such note", "Error")}
CHANGED = {"412": response("The note is not what If-Match or If-None-Match want", "Error")}
TOO_LARGE = {"413": response("The body is over the limit", "Error")}
INVALID = {"422": response("Validation Error", "HTTPValidationError")}
UNAVAILABLE = {
    "503": {
        **response("The database is away, full or slow", "Error"),
        "headers": {"Retry-After": header("Seconds to wait", "integer")},
    }
}
BODY_ERRORS = {**UNPARSABLE, **TOO_LARGE, **INVALID, **UNAVAILABLE}

ETAG = {"ETag": header("A strong entity tag of the note")}
APPLIED = {"Preference-Applied": header("return=minimal")}
MINIMAL = {"204": {"description": "Done, as Prefer: return=minimal wants it", "headers": APPLIED}}
NOTE = {**response("Successful Response", "Note"), "headers": ETAG}
MINIMAL_NOTE = {"204": {**MINIMAL["204"], "headers": {**APPLIED, **ETAG}}}

NOTE_ID = parameter("path", "note_id", "The note's id", type="integer", minimum=1, maximum=MAX_ID)
IF_MATCH = parameter("header", "If-Match", "Entity tags, one of which the note has", type="string")
IF_NONE_MATCH = parameter(
    "header", "If-None-Match", "Entity tags, none of which the note has", type="string"
)
PREFER = parameter("header", "Prefer", "return=minimal for an answer without body", type="string")
KEY = parameter(
    "header",
    "Idempotency-Key",
    "Makes a retry safe: the same key and body store once, for 24 hours",
    type="string",
    minLength=1,
    maxLength=255,
)
NOTES = {"type": "array", "items": {"$ref": "#/components/schemas/Note"}}
LINES = {"schema": {"type": "string", "description": "One note a line"}}


def lines_too(body: dict[str, Any]) -> dict[str, Any]:
    """The body, or as newline-delimited JSON."""
    return {**body, "content": {**body["content"], "application/x-ndjson": LINES}}


# What the document says of each operation, by the name of its function.
OPERATIONS: dict[str, dict[str, Any]] = {
    "read_notes": {
        "parameters": [
            parameter(
                "query", "limit", "Notes a page", type="integer", minimum=1, maximum=MAX_PAGE
            ),
            parameter(
                "query",
                "after",
                "The id behind which to go on, as the Link header has it",
                type="integer",
                minimum=0,
                maximum=MAX_ID,
            ),
            parameter(
                "query", "order", "Of the ids", type="string", enum=["asc", "desc"], default="asc"
            ),
            parameter("query", "completed", "Only notes that are or aren't", type="boolean"),
            parameter(
                "query", "q", "Only notes that contain this, in upper or lower case", type="string"
            ),
        ],
        "responses": {
            "200": {
                **lines_too(
                    response(
                        "Successful Response",
                        {**NOTES, "title": "Response Read Notes Notes  Get"},
                    )
                ),
                "headers": {"Link": header("The page that follows, with rel=next (RFC 8288)")},
            },
            **INVALID,
            **UNAVAILABLE,
        },
    },
    "create_note": {
        "parameters": [KEY, PREFER],
        "requestBody": {"required": True, **json_content("NoteIn")},
        "responses": {
            "200": NOTE,
            "204": {
                **MINIMAL_NOTE["204"],
                "headers": {**APPLIED, **ETAG, "Location": header("The note's URL")},
            },
            **BODY_ERRORS,
        },
    },
    "create_notes": {
        "parameters": [KEY, PREFER],
        "requestBody": {
            "required": True,
            **lines_too(
                json_content(
                    {
                        "type": "array",
                        "items": {"$ref": "#/components/schemas/NoteIn"},
                        "minItems": 1,
                        "maxItems": MAX_BATCH,
                    }
                )
            ),
        },
        "responses": {
            "200": lines_too(response("The stored notes in the order sent", NOTES)),
            **MINIMAL,
            **BODY_ERRORS,
        },
    },
    "read_note": {
        "parameters": [NOTE_ID, IF_NONE_MATCH, IF_MATCH],
        "responses": {
            "200": NOTE,
            "304": {"description": "The note is what the client has", "headers": ETAG},
            **NOT_FOUND,
            **CHANGED,
            **UNAVAILABLE,
        },
    },
    "replace_note": {
        "parameters": [NOTE_ID, IF_MATCH, IF_NONE_MATCH, PREFER],
        "requestBody": {"required": True, **json_content("NoteIn")},
        "responses": {"200": NOTE, **MINIMAL_NOTE, **NOT_FOUND, **CHANGED, **BODY_ERRORS},
    },
    "change_note": {
        "parameters": [NOTE_ID, IF_MATCH, IF_NONE_MATCH, PREFER],
        "requestBody": {"required": True, **json_content("NotePatch")},
        "responses": {"200": NOTE, **MINIMAL_NOTE, **NOT_FOUND, **CHANGED, **BODY_ERRORS},
    },
    "delete_note": {
        "parameters": [NOTE_ID, IF_MATCH, IF_NONE_MATCH],
        "responses": {
            "204": {"description": "The note is gone"},
            **NOT_FOUND,
            **CHANGED,
            **UNAVAILABLE,
        },
    },
}


def operations(path: str, resource: Resource) -> dict[str, Any]:
    """The path's operations, named as FastAPI names them; KeyError for one that isn't described."""
    item = {}
    for method, handler in resource.handlers.items():
        name = handler.__name__
        item[method.lower()] = {
            "summary": name.replace("_", " ").title(),
            "operationId": re.sub(r"\W", "_", f"{name}{path}_{method.lower()}"),
            **OPERATIONS[name],
        }
    return item


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the routes to resources."""
    spec = APISpec("Notes", __version__, "3.1.0", plugins=[MarshmallowPlugin()])
    spec.components.schema("HTTPValidationError", HTTP_VALIDATION_ERROR)
    spec.components.schema("ValidationError", VALIDATION_ERROR)
    spec.components.schema("Error", ERROR)
    schemas = {"NoteIn": note_in, "NotePatch": note_patch, "Note": note_out}
    for name, schema in schemas.items():
        spec.components.schema(name, schema=schema)
    for route in routes:
        if isinstance(route, Route) and isinstance(route.endpoint, Resource):
            spec.path(route.path, operations=operations(route.path, route.endpoint))
    result = spec.to_dict()
    for name in schemas:
        component = result["components"]["schemas"][name]
        component["title"] = name
        for field, description in component["properties"].items():
            description["title"] = field.title()
    return result
