"""The dictionary of paths finds what Starlette's router finds."""

import asyncio
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import app
from service.web.paths import Paths

FOUND = ("route", "endpoint", "path_params", "router", "root_path")


class Endpoint:
    """An ASGI app that keeps what the router found."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.found.update({name: scope.get(name) for name in FOUND})


# Few, so that they often meet.
PATTERNS = ["/a/", "/a", "/a/b", "/a/{x}", "/{x}", "/{x}/b", "/b/{y}", "/{x}/{y}", "/a/{x:int}"]
ODD = ["/a/{x}-{y}", "/a{x}", "/{x:path}", "/a/{x}/b", "/", "/a/a/b"]
patterns = st.one_of(st.sampled_from(PATTERNS), st.sampled_from(PATTERNS + ODD))
methods = st.sampled_from([None, None, None, ["GET"], ["POST"]])
new_routes = st.builds(
    lambda pattern, methods: Route(pattern, Endpoint(), methods=methods), patterns, methods
)
mounts = st.sampled_from(["", "/a", "/b"]).map(lambda path: Mount(path, Endpoint()))
routes = st.lists(st.one_of(*[new_routes] * 5, mounts), max_size=5)
texts = st.sampled_from(["a", "b", "1", "1-2", "\u00e9", "\n", ""])
ends = st.sampled_from(["", "", "\n", "/"])


def near(routes: list[BaseRoute]) -> st.SearchStrategy[tuple[list[BaseRoute], Scope]]:
    """The routes, and a request for a path that one of them has, or that looks like it."""
    near_path = st.builds(
        lambda pattern, text, end: re.sub("{.*?}", text, pattern) + end,
        st.sampled_from([route.path for route in routes if isinstance(route, Route)] + ["/a/{x}"]),
        texts,
        ends,
    )
    scopes = st.fixed_dictionaries(
        {
            "type": st.just("http"),
            "method": st.sampled_from(["GET", "HEAD", "POST"]),
            "path": near_path,
            "root_path": st.sampled_from(["", "", "", "/a"]),
            "query_string": st.just(b""),
            "headers": st.just([(b"host", b"h")]),
            "app": st.none(),
        },
        optional={"path_params": st.just({"outer": "of a router outside"})},
    )
    return st.tuples(st.just(routes), scopes)


def outcome(app: ASGIApp, router: Router, scope: Scope) -> Any:
    """What an app does with a request: the scope of the endpoint, what it sends, what it raises."""
    sent: list[Message] = []
    raised: Any = None

    async def run() -> None:
        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        await app(dict(scope), receive, send)

    endpoints = [route.app for route in router.routes if isinstance(route, Route | Mount)]
    for endpoint in endpoints:
        if isinstance(endpoint, Endpoint):
            endpoint.found.clear()
    try:
        asyncio.run(run())
    except HTTPException as error:
        raised = error.status_code, error.headers
    return [dict(getattr(endpoint, "found", {})) for endpoint in endpoints], sent, raised


def at(path: str) -> Scope:
    return {"type": "http", "method": "GET", "path": path, "root_path": "", "app": None}


@settings(max_examples=500)
@example(case=([Route("/a/", Endpoint()), Route("/a/{x}", Endpoint())], at("/a/\n")))
@given(case=routes.flatmap(near))
def test_any_path_leads_where_the_router_leads(case: tuple[list[BaseRoute], Scope]) -> None:
    """Any request to any routes meets the same route with the same parameters, or none."""
    routes, scope = case
    router = Router(routes)
    assert outcome(Paths(router), router, scope) == outcome(router, router, scope)


def test_routes_may_follow() -> None:
    """A route that is added to the router later, after the others, is found."""
    router = Router([Route("/a/{x}", Endpoint())])
    found = Paths(router)
    router.routes.append(Route("/b", Endpoint()))
    assert outcome(found, router, at("/b"))[0][1]["path_params"] == {}


@pytest.mark.parametrize("path", ["/notes/", "/notes/batch", "/notes/{note_id}", "/health/live"])
def test_usual_paths_need_no_search(path: str) -> None:
    """The dictionary has the paths of a resource's usual operations, and what comes after it."""
    found = Paths(app.router)
    known = [*found.fixed.values(), *(route for route, _ in found.last.values())]
    assert path in [route.path for route in known]
