"""This service without one of its methods: the plain way stands in its place.

WITHOUT names the method, or "all" of them. The service has no such switches; here its functions are
replaced before `service.app` is imported. So a variant answers the same, and costs what it would
have cost without the method.
"""

import os
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, TypeVar

from marshmallow import Schema
from sqlalchemy import ClauseElement
from sqlalchemy.engine import Dialect
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service import one_write
from service.database import coalescing, compiling
from service.database.dialect import dialect
from service.schemas import compiled

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def compile_statements_at_each_call() -> None:
    """As encode/databases does."""

    def compile_again(
        statement: ClauseElement, kind: Dialect, make: Callable[[compiling.Compiled], Result]
    ) -> Callable[[], Result]:
        return lambda: make(compiling.compile_statement(statement, kind))

    # The module of the dialect has imported its own name already.
    dialect.compile_later = compile_again  # type: ignore[attr-defined]


def load_and_dump_by_marshmallow() -> None:
    """As marshmallow's documentation shows."""

    def dump(schema: Schema) -> Callable[[Any], Any]:
        return lambda rows: schema.dump(rows, many=True)

    compiled.compile_dump = dump
    compiled.compile_load = lambda schema: schema.load
    compiled.compile_usual = lambda schema: lambda data: compiled.OTHER


def wrap_in_starlettes_layers() -> None:
    """Starlette's two layers around and inside of the service's own."""
    from service.app import Service

    build = Service.build_middleware_stack

    def build_three(self: Service) -> ASGIApp:
        own: Any = build(self)
        own.app = ExceptionMiddleware(own.app)
        return ServerErrorMiddleware(own)

    Service.build_middleware_stack = build_three  # type: ignore[method-assign]


def write_head_and_body() -> None:
    """As uvicorn does: two system calls for a response."""

    def write(self: one_write.BufferedTransport, data: bytes) -> None:
        self.transport.write(data)

    one_write.BufferedTransport.write = write  # type: ignore[method-assign]
    one_write.Cycle.send = RequestResponseCycle.send  # type: ignore[method-assign]


def encode_each_page() -> None:
    """Also if the rows are those of the last time."""
    from service.resources.pages import Pages

    Pages._keep = Pages._encode  # type: ignore[method-assign]


def ask_for_each_request() -> None:
    """One query for each request."""

    def alone(
        serve: Callable[[list[Argument]], Awaitable[Sequence[Result]]],
        observe: Callable[[int], object] = lambda size: None,
        **rest: Any,
    ) -> Callable[[Argument], Awaitable[Result]]:
        async def call(argument: Argument) -> Result:
            observe(1)
            (result,) = await serve([argument])
            return result

        return call

    def is_shared(self: Any, selection: Hashable, limit: int) -> bool:
        return False

    coalescing.coalesce = alone  # type: ignore[assignment]
    from service.resources.queries import Queries

    Queries.is_shared = is_shared  # type: ignore[method-assign]


# Those whose modules are imported by later ones come first.
METHODS = {
    "statements": compile_statements_at_each_call,
    "schemas": load_and_dump_by_marshmallow,
    "sharing": ask_for_each_request,
    "pages": encode_each_page,
    "write": write_head_and_body,
    "layer": wrap_in_starlettes_layers,
}

without = os.environ["WITHOUT"]
for name in METHODS if without == "all" else [without]:
    METHODS[name]()

from service.app import app  # noqa: E402

__all__ = ["app"]
