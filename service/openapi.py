"""The OpenAPI document, made from the schemas and the routes, and the page that shows it."""

import re
from collections.abc import Iterable
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from service import __version__
from service.resources import Resource
from service.schemas import Note, NoteIn

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


UNPARSABLE = {"400": response("The body can't be decoded", "Error")}
TOO_LARGE = {"413": response("The body is over the limit", "Error")}
NOT_FOUND = {"404": response("There is no such note", "Error")}
INVALID = {"422": response("Validation Error", "HTTPValidationError")}
UNAVAILABLE = {
    "503": {
        **response("The database is away, full or slow", "Error"),
        "headers": {
            "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}
        },
    }
}

NOTE_ID = {
    "name": "note_id",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "title": "Note Id", "minimum": 1, "maximum": 2**31 - 1},
}

# What the document says of each operation, by the name of its function.
OPERATIONS: dict[str, dict[str, Any]] = {
    "read_notes": {
        "responses": {
            "200": response(
                "Successful Response",
                {
                    "type": "array",
                    "title": "Response Read Notes Notes  Get",
                    "items": {"$ref": "#/components/schemas/Note"},
                },
            ),
            **UNAVAILABLE,
        },
    },
    "create_note": {
        "requestBody": {"required": True, **json_content("NoteIn")},
        "responses": {
            "200": response("Successful Response", "Note"),
            **UNPARSABLE,
            **TOO_LARGE,
            **INVALID,
            **UNAVAILABLE,
        },
    },
    "read_note": {
        "parameters": [NOTE_ID],
        "responses": {
            "200": response("Successful Response", "Note"),
            **NOT_FOUND,
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
    for schema in (NoteIn, Note):
        spec.components.schema(schema.__name__, schema=schema)
    for route in routes:
        if isinstance(route, Route) and isinstance(route.endpoint, Resource):
            spec.path(route.path, operations=operations(route.path, route.endpoint))
    result = spec.to_dict()
    for name in (NoteIn.__name__, Note.__name__):
        component = result["components"]["schemas"][name]
        component["title"] = name
        for field, schema in component["properties"].items():
            schema["title"] = field.title()
    return result


# All from this origin and no inline script, so the page works with no internet and under a strict
# Content-Security-Policy.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Notes - Swagger UI</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<link rel="icon" href="docs/assets/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
});
"""


async def docs(request: Request) -> Response:
    return HTMLResponse(PAGE)


async def start(request: Request) -> Response:
    return Response(START, media_type="text/javascript")
