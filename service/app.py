"""The table of contents: routes, error handlers, lifespan and the app."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from service import endpoints, errors, openapi
from service.database import connected
from service.resources import JSONBytes, Resource


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # What has been imported stays; without this, each full collection walks through all of it.
    gc.collect()
    gc.freeze()
    async with connected():
        yield


async def openapi_json(request: Request) -> Response:
    return JSONBytes(orjson.dumps(document))


routes = [
    Route("/notes/", Resource(GET=endpoints.read_notes, POST=endpoints.create_note)),
    Route("/notes/{note_id}", Resource(GET=endpoints.read_note)),
    Route("/", endpoints.home),
    Route("/openapi.json", openapi_json),
    Route("/docs", openapi.docs),
    Route("/docs/start.js", openapi.start),
    Mount("/docs/assets", StaticFiles(packages=[("swagger_ui", "static")])),
]
document = openapi.document(routes)
app = Starlette(routes=routes, exception_handlers=errors.handlers, lifespan=lifespan)
