"""The table of contents: routes, error handlers, lifespan and the app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from service import endpoints, errors, openapi
from service.database import connected


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with connected():
        yield


async def openapi_json(request: Request) -> Response:
    return endpoints.json_response(document)


routes = [
    Route("/notes/", endpoints.Notes),
    Route("/notes/{note_id}", endpoints.Note),
    Route("/", endpoints.home, include_in_schema=False),
    Route("/openapi.json", openapi_json, include_in_schema=False),
    Route("/docs", openapi.docs, include_in_schema=False),
    Route("/docs/start.js", openapi.start, include_in_schema=False),
    Mount("/docs/assets", StaticFiles(packages=[("swagger_ui", "static")])),
]
document = openapi.document(routes)
app = Starlette(routes=routes, exception_handlers=errors.handlers, lifespan=lifespan)
