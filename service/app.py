"""The table of contents: routes, error handlers, lifespan and the app."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from service import health, settings
from service.database.connections import connected
from service.notes import endpoints as notes
from service.openapi import docs
from service.openapi.document import document as make_document
from service.users import access
from service.users import endpoints as users
from service.users.access import Guard
from service.web.errors import error_response
from service.web.middleware import Edge
from service.web.routing import Handler, JSONBytes, Resource


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # What has been imported stays; without this, each full collection walks through all of it.
    gc.collect()
    gc.freeze()
    # Requests leave hardly any cycles behind; by default some twenty pass between collections.
    gc.set_threshold(10_000)
    async with connected(), access.hinting():
        yield


async def openapi_json(request: Request) -> Response:
    return JSONBytes(orjson.dumps(document))


class CORS(CORSMiddleware):
    """Answers a preflight that it refuses in JSON, as all errors are."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        headers = {"Vary": response.headers["vary"]}
        return error_response(bytes(response.body).decode(), response.status_code, headers)


cors = Middleware(
    CORS,
    allow_origins=settings.CORS_ORIGINS,
    allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
    allow_headers=["*"],
    expose_headers=[
        "ETag",
        "Link",
        "Location",
        "Preference-Applied",
        "Retry-After",
        "X-Request-ID",
    ],
)

guard = [Middleware(Guard)] if settings.ACCESS == "token" else []


def resource(path: str, name: str | None = None, **handlers: Handler) -> Route:
    """A route to a resource, for users alone where ACCESS says so."""
    return Route(path, Resource(**handlers), name=name, middleware=guard)


resources = [
    resource("/notes/", GET=notes.read_notes, POST=notes.create_note),
    resource("/notes/batch", POST=notes.create_notes),
    resource(
        "/notes/{note_id}",
        "note",
        GET=notes.read_note,
        PUT=notes.replace_note,
        PATCH=notes.change_note,
        DELETE=notes.delete_note,
    ),
    resource("/users/{username}", GET=users.read_user),
]
document = make_document(resources, by_token=bool(guard))
pages = [
    Route("/", Resource(GET=docs.home)),
    Route("/openapi.json", Resource(GET=openapi_json)),
    Route("/docs", Resource(GET=docs.page), name="docs"),
    Route("/docs/start.js", Resource(GET=docs.start)),
    Mount("/docs/assets", StaticFiles(packages=[("swagger_ui", "static")])),
]
health_checks = [
    Route("/health/live", Resource(GET=health.live)),
    Route("/health/ready", Resource(GET=health.ready)),
]
if settings.METRICS:
    health_checks.append(Route("/metrics", Resource(GET=health.read_metrics)))


class Service(Starlette):
    """Starlette with one layer for all that it has around its routes: each costs every request."""

    def build_middleware_stack(self) -> ASGIApp:
        def wrap(app: ASGIApp) -> ASGIApp:
            for middleware, arguments, options in reversed(self.user_middleware):
                app = middleware(app, *arguments, **options)
            return app

        return Edge(self.router, wrap)


app = Service(
    routes=[*resources, *pages, *health_checks],
    middleware=[cors] if settings.CORS_ORIGINS else [],
    lifespan=lifespan,
)
