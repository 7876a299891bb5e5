"""Resources: their paths, and a handler for each method of a path."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from marshmallow import Schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.live.watched import Watched
from service.settings import LIVE
from service.web import encodings
from service.web.headers import has_any
from service.web.responses import Prepared

Handler = Callable[[Request], Awaitable[Response]]


class Operation(NamedTuple):
    """One method of a path: the name in the OpenAPI document, who answers, and the description."""

    name: str
    handler: Handler
    description: Mapping[str, Any]
    # What has to be recorded for it. It is offered with LIVE alone.
    watched: Watched | None = None


class Path:
    """A path, and its operations by method in capitals. The name is for making URLs."""

    def __init__(self, path: str, name: str | None = None, **operations: Operation) -> None:
        self.path = path
        self.name = name
        self.operations = operations

    @property
    def watched(self) -> Watched | None:
        """What has to be recorded for an operation."""
        return next((one.watched for one in self.operations.values() if one.watched), None)

    def handlers(self) -> dict[str, Handler]:
        return {method: operation.handler for method, operation in self.operations.items()}


class Resource:
    """A resource, for the application and the OpenAPI document: schemas by name, and paths.

    Its changes may be followed; `watched` is what has to be recorded for it.
    """

    def __init__(self, schemas: Mapping[str, Schema], *paths: Path) -> None:
        self.schemas = schemas
        self.watched = [one for path in paths if (one := path.watched)]
        self.paths = [path for path in paths if LIVE or not path.watched]


class Methods:
    """The ASGI app of one path. The keywords are methods in capitals.

    The handler of `GET` also answers `HEAD`. `OPTIONS` gets 204, and other methods get 405, both
    with `Allow`. Answers are compressed here, and conditions on answers to `GET` evaluated.
    Starlette's HTTPEndpoint would look up the handler anew at each request.
    """

    def __init__(self, **handlers: Handler) -> None:
        self.answers = dict(handlers)
        if "GET" in handlers:
            self.answers["HEAD"] = handlers["GET"]
        self.allow = {"Allow": ", ".join(sorted({*self.answers, "OPTIONS"}))}
        self.answers["OPTIONS"] = self.options

    async def options(self, request: Request) -> Response:
        return Response(status_code=204, headers=self.allow)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self.answers.get(scope["method"])
        if handler is None:
            raise HTTPException(405, headers=self.allow)
        request = Request(scope, receive, send)
        response = await handler(request)
        if has_any(scope, encodings.NEGOTIATED):
            response = await encodings.negotiate(request, response)
        elif type(response) is not Prepared and encodings.is_large(response):
            encodings.describe(response)
        await response(scope, receive, send)
