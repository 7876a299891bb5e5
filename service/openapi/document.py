"""The OpenAPI document, made from the schemas and the routes."""

import re
from collections.abc import Sequence
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from service import __version__
from service.openapi.parts import header, response
from service.web.routing import Path, Resource

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


UNAUTHENTICATED = {
    "401": {
        **response("No token of an active user", "Error"),
        "headers": {"WWW-Authenticate": header("Bearer")},
    }
}


def operations(resource: Resource, path: Path, by_token: bool) -> dict[str, Any]:
    """The path's operations, named as FastAPI names them; KeyError for one that isn't described."""
    item = {}
    for method, handler in path.handlers.items():
        name = handler.__name__
        described = resource.operations[name]
        if by_token:
            responses = {**described["responses"], **UNAUTHENTICATED}
            described = {**described, "responses": responses, "security": [{"token": []}]}
        item[method.lower()] = {
            "summary": name.replace("_", " ").title(),
            "operationId": re.sub(r"\W", "_", f"{name}{path.path}_{method.lower()}"),
            **described,
        }
    return item


def document(resources: Sequence[Resource], by_token: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the resources, which may be open by token only."""
    spec = APISpec("Notes", __version__, "3.1.0", plugins=[MarshmallowPlugin()])
    spec.components.schema("HTTPValidationError", HTTP_VALIDATION_ERROR)
    spec.components.schema("ValidationError", VALIDATION_ERROR)
    spec.components.schema("Error", ERROR)
    if by_token:
        spec.components.security_scheme("token", {"type": "http", "scheme": "bearer"})
    schemas = {name: schema for one in resources for name, schema in one.schemas.items()}
    for name, schema in schemas.items():
        spec.components.schema(name, schema=schema)
    for resource in resources:
        for path in resource.paths:
            spec.path(path.path, operations=operations(resource, path, by_token))
    result = spec.to_dict()
    for name in schemas:
        component = result["components"]["schemas"][name]
        component["title"] = name
        for field, description in component["properties"].items():
            description["title"] = field.replace("_", " ").title()
    return result
