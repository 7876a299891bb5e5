"""The pages at /docs: Swagger UI with the OpenAPI document, and the notes as they change.

They are served by this service alone.
"""

import asyncio
import re
from functools import cache
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from service.web import conditions
from service.web.budget import LARGE_BYTES

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
# Swagger UI draws its icons from data: URLs, and sets style attributes.
POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline';"
    " frame-ancestors 'none'; base-uri 'none'"
)

# The page with the notes needs neither.
STRICT = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"

# The page and the document may be others at the next start: a browser asks, and has a 304.
ASK = "no-cache"
# Swagger UI's own files change seldom, and are large.
A_DAY = "public, max-age=86400"
ASSETS = set(re.findall('"docs/assets/(.*?)"', PAGE))
TYPES = {"css": "text/css", "js": "text/javascript", "png": "image/png"}


# The number of clients that take a large file at the same time. Each has a part of it in memory,
# though everybody may ask for it, without a token and beyond RATE_LIMIT.
MAX_TAKERS = 64
_takers = asyncio.Semaphore(MAX_TAKERS)


class File(Response):
    """A file. A large one waits until others are taken."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self.body) <= LARGE_BYTES or scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        async with _takers:
            await super().__call__(scope, receive, send)


@cache
def _tag(body: bytes) -> str:
    return conditions.etag(body)


def fixed(body: bytes, media_type: str, caching: str = ASK) -> Response:
    """An answer that is the same until another version of the service."""
    headers = {"ETag": _tag(body), "Cache-Control": caching}
    return File(body, headers=headers, media_type=media_type)


async def home(request: Request) -> Response:
    # `url_for` itself needs a host, which a Unix socket may lack.
    path = request.url_for("docs").path
    return RedirectResponse(request.url.replace(path=path, query=""))


async def swagger_ui(request: Request) -> Response:
    response = fixed(PAGE.encode(), "text/html")
    response.headers["Content-Security-Policy"] = POLICY
    return response


async def start(request: Request) -> Response:
    return fixed(START.encode(), "text/javascript")


@cache
def _read(name: str) -> bytes:
    return (files("swagger_ui") / "static" / name).read_bytes()


async def asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in ASSETS:
        raise HTTPException(404)
    return fixed(_read(name), TYPES[name.rpartition(".")[2]], A_DAY)


@cache
def _own(name: str) -> bytes:
    return (files(__package__) / name).read_bytes()


async def live(request: Request) -> Response:
    """A page that follows the notes. EventSource sends no token, so it is for ACCESS=open."""
    response = fixed(_own("live.html"), "text/html")
    response.headers["Content-Security-Policy"] = STRICT
    return response


async def live_script(request: Request) -> Response:
    return fixed(_own("live.js"), "text/javascript")
