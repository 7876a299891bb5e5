"""The OpenAPI document, made from the schemas and the routes."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from service import __version__
from service.openapi.parts import header, response
from service.settings.rates import Rate
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
            "description": "The place of the error: `body`, `query` or `header`, then the field",
            "examples": [["query", "limit"]],
            "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        },
        "msg": {
            "type": "string",
            "title": "Message",
            "description": "The error in words",
            "examples": ["Input should be less than or equal to 1000"],
        },
        "type": {
            "type": "string",
            "title": "Error Type",
            "description": "The kind of the error, for programs",
            "examples": ["less_than_equal"],
        },
        "input": {"title": "Input", "description": "The value that is wrong", "examples": ["1001"]},
        "ctx": {
            "type": "object",
            "title": "Context",
            "description": "The limits that the value violates",
            "examples": [{"le": 1000}],
        },
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
            "description": "All errors in the request",
            "items": {"$ref": "#/components/schemas/ValidationError"},
        }
    },
}
ERROR = {
    "type": "object",
    "title": "Error",
    "properties": {
        "detail": {
            "type": "string",
            "title": "Detail",
            "description": "What is wrong, in words",
            "examples": ["Not Found"],
        }
    },
    "required": ["detail"],
}

INFO: dict[str, Any] = {
    "description": "Short texts, each completed or open. Every error body is JSON with `detail`.",
    "contact": {"name": "The operators of this service"},
}
TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "description": "The token of an active user. Without one every answer is a 401. A read-only"
    " one gets a 403 for writes.",
}
UNAUTHENTICATED = {
    "401": {
        **response("No token of an active user", "Error"),
        "headers": {
            "WWW-Authenticate": header("How to authenticate", 'Bearer error="invalid_token"')
        },
    }
}
MISSING = {"WWW-Authenticate": header("What is missing", 'Bearer error="insufficient_scope"')}
FORBIDDEN = {"403": {**response("The token is read-only", "Error"), "headers": MISSING}}
# With JWT_CREATE_USERS=0.
STRANGE = {"403": response("There is no user for the token", "Error")}
FORBIDDEN_OR_STRANGE = {
    "403": {
        **response("The token is read-only, or there is no user for it", "Error"),
        "headers": MISSING,
    }
}
TOO_MANY = {
    "429": {
        **response("The client has sent too many requests", "Error"),
        "headers": {"Retry-After": header("The number of seconds to wait", 1, "integer")},
    }
}


# Generated clients make one type of all the errors of an operation, and one of all other answers.
# An operation of the FastAPI example names only the example's answers, and a 304 without a body. So
# programs for the example fit. The description tells of the other answers.
OF_THE_EXAMPLE = {"200", "304", "422"}


def operations(
    path: Path, by_token: bool, is_limited: bool, refuses_strangers: bool
) -> dict[str, Any]:
    """The path's operations, named as FastAPI names them."""
    forbidden_to_read, forbidden_to_write = (
        (STRANGE, FORBIDDEN_OR_STRANGE) if refuses_strangers else ({}, FORBIDDEN)
    )
    item = {}
    names = set(re.findall(r"{(\w+)", path.path))
    for method, (name, _, described, _) in path.operations.items():
        parameters = described.get("parameters", ())
        if {one["name"] for one in parameters if one.get("in") == "path"} != names:
            raise ValueError(f"{path.path}: {name} describes other parameters of the path")
        if by_token:
            described = {**described, "security": [{"token": []}]}
            if not described["responses"].keys() <= OF_THE_EXAMPLE:
                forbidden = forbidden_to_read if method == "GET" else forbidden_to_write
                refusals = UNAUTHENTICATED | forbidden
                described["responses"] = {**described["responses"], **refusals}
        if is_limited and not described["responses"].keys() <= OF_THE_EXAMPLE:
            described = {**described, "responses": {**described["responses"], **TOO_MANY}}
        item[method.lower()] = {
            "summary": name.replace("_", " ").title(),
            "operationId": re.sub(r"\W", "_", f"{name}{path.path}_{method.lower()}"),
            **described,
            "tags": [tag["name"] for tag in described.get("tags", [])],
        }
    return item


def _refuse_twice(names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"two resources have the same path, or schemas of one name: {twice}")


def document(
    resources: Sequence[Resource],
    by_token: bool,
    rate: Rate | None = None,
    refuses_strangers: bool = False,
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the resources.

    They may be open by token only, and refuse valid tokens of an identity provider whose users the
    operator hasn't added. A client may send requests up to a rate. Raises ValueError for a path or
    a schema's name that is there twice, and for a path whose parameters aren't those described.
    """
    _refuse_twice(path.path for one in resources for path in one.paths)
    _refuse_twice(name for one in resources for name in one.schemas)
    info = dict(INFO)
    if rate:
        info["description"] += (
            f" A client may send {rate.requests} requests per {rate.unit}. Beyond that it gets a"
            " 429 with `Retry-After`, the seconds to wait."
        )
    spec = APISpec(
        "Notes",
        __version__,
        "3.1.0",
        info=info,
        servers=[{"url": "/", "description": "This service"}],
        plugins=[MarshmallowPlugin()],
    )
    spec.components.schema("HTTPValidationError", HTTP_VALIDATION_ERROR)
    spec.components.schema("ValidationError", VALIDATION_ERROR)
    spec.components.schema("Error", ERROR)
    if by_token:
        spec.components.security_scheme("token", TOKEN)
    else:
        spec.options["security"] = []
    schemas = {name: schema for one in resources for name, schema in one.schemas.items()}
    for name, schema in schemas.items():
        spec.components.schema(name, schema=schema)
    for resource in resources:
        described = [
            operation.description
            for path in resource.paths
            for operation in path.operations.values()
        ]
        tags = {tag["name"]: tag for one in described for tag in one.get("tags", [])}
        for tag in tags.values():
            spec.tag(tag)
        for path in resource.paths:
            spec.path(
                path.path, operations=operations(path, by_token, bool(rate), refuses_strangers)
            )
    result = spec.to_dict()
    for name in schemas:
        component = result["components"]["schemas"][name]
        component["title"] = name
        for field, description in component["properties"].items():
            description["title"] = field.replace("_", " ").title()
    return result
