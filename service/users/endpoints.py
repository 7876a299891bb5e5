"""The operations on users. Each parses its request, calls a query, and responds."""

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.users import openapi, queries
from service.users.schemas import user_out
from service.web.conditions import tagged
from service.web.routing import Path, Resource


async def read_user(request: Request) -> Response:
    user = await queries.get_user(request.path_params["username"])
    if user is None:
        raise HTTPException(404)
    return tagged(orjson.dumps(user_out.dump(user)))


resource = Resource(
    [Path("/users/{username}", {"GET": read_user})],
    openapi.SCHEMAS,
    openapi.OPERATIONS,
)
