"""Start reading here: the list of resources, the routes, the lifespan and the app."""

import gc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from service import health, log_lines, settings, telemetry
from service.database.connections import connected
from service.live.sweeping import sweeping
from service.notes.resource import resource as notes
from service.openapi import docs
from service.openapi.document import document as make_document
from service.users import access
from service.users.endpoints import resource as users
from service.web.cors import CORS
from service.web.middleware import ServiceMiddleware
from service.web.paths import Paths
from service.web.rate_limits import PerAddress, limits
from service.web.routing import Handler, Methods, Resource

if settings.LOG_FORMAT == "json":
    log_lines.install()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # Imported objects stay until the end, so full collections need not visit them.
    gc.collect()
    gc.freeze()
    # Requests create few reference cycles. The default collects after about twenty requests.
    gc.set_threshold(10_000)
    async with telemetry.sending(), connected(), access.hinting(), sweeping(watched):
        yield


RESOURCES = [notes, users]
watched = [one for resource in RESOURCES for one in resource.watched] if settings.LIVE else []

guard = [Middleware(access.Guard)] if settings.ACCESS != "open" else []
# A guard counts for its users, too.
per_address = [Middleware(PerAddress, limits)] if limits else []
refuses_strangers = settings.JWT_ISSUER != "" and not settings.JWT_CREATE_USERS
document = make_document(RESOURCES, bool(guard), settings.RATE_LIMIT, refuses_strangers)
health_checks = [
    Route("/health/live", Methods(GET=health.live)),
    Route("/health/ready", Methods(GET=health.ready)),
]
if settings.METRICS:
    health_checks.append(Route("/metrics", Methods(GET=health.read_metrics)))


class Service(Starlette):
    """Starlette with one middleware layer instead of three: each layer costs every request."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.refuse_options()

    def add_exception_handler(self, *handler: Any) -> None:
        super().add_exception_handler(*handler)
        self.refuse_options()

    def refuse_options(self) -> None:
        """Raises ValueError for options of the layers that this application doesn't have."""
        absent = {"debug": False, "exception_handlers": {}, "max_body_size": None}
        for name, default in absent.items():
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} has no effect here: service/web/errors.py answers exceptions,"
                    " and MAX_BODY_BYTES limits bodies"
                )

    def build_middleware_stack(self) -> ASGIApp:
        self.refuse_options()

        def wrap(app: ASGIApp) -> ASGIApp:
            for middleware, arguments, options in reversed(self.user_middleware):
                app = middleware(app, *arguments, **options)
            return app

        return ServiceMiddleware(Paths(self.router), wrap)


def serve(document: Mapping[str, Any]) -> Handler:
    """Answers with the OpenAPI document."""

    @lru_cache(8)
    def encode(root_path: str) -> bytes:
        """The document of the service below a path, such as that of a proxy."""
        server = {"url": root_path or "/", "description": "This service"}
        return orjson.dumps({**document, "servers": [server]})

    async def openapi_json(request: Request) -> Response:
        root_path = request.scope.get("root_path", "").rstrip("/")
        return docs.fixed(encode(root_path), "application/json")

    return openapi_json


def make_app(
    resources: Sequence[Resource],
    document: Mapping[str, Any],
    guard: Sequence[Middleware] = guard,
) -> Service:
    """The service of these resources, behind a guard. The OpenAPI document describes them."""
    routes = [
        Route(
            path.path, Methods(**path.handlers()), name=path.name, middleware=guard or per_address
        )
        for resource in resources
        for path in resource.paths
    ]
    documentation = [
        Route("/", Methods(GET=docs.home)),
        Route("/openapi.json", Methods(GET=serve(document))),
        Route("/docs", Methods(GET=docs.swagger_ui), name="docs"),
        Route("/docs/start.js", Methods(GET=docs.start)),
        Route("/docs/assets/{name}", Methods(GET=docs.asset)),
    ]
    if settings.LIVE and not guard:
        documentation += [
            Route("/docs/live", Methods(GET=docs.live)),
            Route("/docs/live.js", Methods(GET=docs.live_script)),
        ]
    return Service(
        routes=[*routes, *documentation, *health_checks],
        middleware=[Middleware(CORS)] if settings.CORS_ORIGINS else [],
        lifespan=lifespan,
    )


app = make_app(RESOURCES, document)
