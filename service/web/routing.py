"""What the endpoints of every resource are made of."""

from collections.abc import Awaitable, Callable, Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]


class Resource:
    """The ASGI app of one path: a handler for each method, given by its name in capitals.

    `HEAD` is answered by `GET`, `OPTIONS` with 204, any other method with 405; `Allow` names them
    all. Starlette's HTTPEndpoint finds all this out anew at each request.
    """

    def __init__(self, **handlers: Handler) -> None:
        self.handlers = handlers
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
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)


class JSONBytes(Response):
    """A response whose body is JSON already, without the steps that Response takes for any body."""

    def __init__(
        self,
        body: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        media_type: str = "application/json",
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", media_type.encode()),
            *headers,
        ]
