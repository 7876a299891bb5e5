"""A dictionary of the paths, before Starlette's router, which tries one route after the other."""

from collections.abc import Awaitable, Sequence

from starlette.convertors import StringConvertor
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send


class Paths:
    """The ASGI app of a router: finds what the router would find, and leaves the rest to it.

    It finds paths without parameters, and those with one as their last part. The rest are other
    paths, redirects, 404s, and all requests with a `root_path`. Routes that are added later have to
    come after the others.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        self.fixed, self.last = _tabulate(router.routes)

    # Not a coroutine, because this would cost more for each request.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or scope.get("root_path"):
            return self.router(scope, receive, send)
        path = scope["path"]
        route = self.fixed.get(path)
        params = scope.get("path_params", {})
        if route is None:
            start, _, value = path.rpartition("/")
            # In Starlette's patterns a line break may follow the end of a path.
            if start not in self.last or not value or "\n" in value:
                return self.router(scope, receive, send)
            route, name = self.last[start]
            params = {**params, name: value}
        scope.setdefault("router", self.router)
        scope["route"] = route
        scope["endpoint"] = route.endpoint
        scope["path_params"] = params
        return route.app(scope, receive, send)


def _tabulate(routes: Sequence[BaseRoute]) -> tuple[dict[str, Route], dict[str, tuple[Route, str]]]:
    """The routes by path, and by what comes before the last part, with the parameter's name.

    A route that comes after one which may have the same paths is left out.
    """
    fixed: dict[str, Route] = {}
    last: dict[str, tuple[Route, str]] = {}
    # How many slashes the paths of the other routes have. No parameter has one.
    others: set[int] = set()
    for route in routes:
        if type(route) is not Route or not all(
            type(convertor) is StringConvertor for convertor in route.param_convertors.values()
        ):
            break
        path = route.path_format
        start, _, part = path.rpartition("/")
        names = list(route.param_convertors)
        if path.count("/") in others or start in last:
            continue
        if route.methods is None and not names:
            fixed.setdefault(path, route)
        elif route.methods is None and names == [part[1:-1]]:
            last[start] = route, names[0]
        else:
            others.add(path.count("/"))
    return fixed, last
