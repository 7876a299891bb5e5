"""The operations on users. Each parses its request, calls a query, and responds."""

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.settings import ACCESS
from service.users import openapi, queries
from service.users.schemas import user_out
from service.web.conditions import tagged
from service.web.routing import Operation, Path, Resource


async def read_user(request: Request) -> Response:
    name = request.path_params["username"]
    if ACCESS == "private" and queries.normalize(name) != request.scope["user"]["username"]:
        raise HTTPException(404)
    user = await queries.get_user(name)
    if user is None:
        raise HTTPException(404)
    return tagged(orjson.dumps(user_out.dump(user)))


resource = Resource(
    openapi.SCHEMAS,
    Path("/users/{username}", GET=Operation("read_user", read_user, openapi.READ_USER)),
)
