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

from service import docs, endpoints, errors, openapi
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


resources = [
    Route(
        "/notes/",
        Resource(GET=endpoints.read_notes, POST=endpoints.create_note),
    ),
    Route("/notes/batch", Resource(POST=endpoints.create_notes)),
    Route(
        "/notes/{note_id}",
        Resource(
            GET=endpoints.read_note,
            PUT=endpoints.replace_note,
            PATCH=endpoints.change_note,
            DELETE=endpoints.delete_note,
        ),
        name="note",
    ),
]
document = openapi.document(resources)
pages = [
    Route("/", Resource(GET=endpoints.home)),
    Route("/openapi.json", Resource(GET=openapi_json)),
    Route("/docs", Resource(GET=docs.page), name="docs"),
    Route("/docs/start.js", Resource(GET=docs.start)),
    Mount("/docs/assets", StaticFiles(packages=[("swagger_ui", "static")])),
]
app = Starlette(routes=resources + pages, exception_handlers=errors.handlers, lifespan=lifespan)
