"""What the document says of the operations on users."""

from typing import Any

from service.openapi.parts import (
    IF_MATCH,
    IF_NONE_MATCH,
    UNAVAILABLE,
    header,
    parameter,
    response,
    tag,
)
from service.settings import ACCESS
from service.users.schemas import MAX_USERNAME, user_out

SCHEMAS = {"User": user_out}

TAG = tag("Users", "The users of a service that asks for a token.")
NOT_FOUND = {"404": response("There is no such user", "Error")}
CHANGED = {"412": response("If-Match does not name the user's state", "Error")}
ETAG = {"ETag": header("A strong entity tag of the user", '"5d3f0a0c7e2b4f6a8c9d0e1f"')}
USERNAME = parameter(
    "path",
    "username",
    "The user's name, in upper or lower case",
    "bob",
    type="string",
    pattern=f"^[A-Za-z0-9._-]{{1,{MAX_USERNAME}}}$",
)

ALONE = " Each user finds themself alone." if ACCESS == "private" else ""

READ_USER: dict[str, Any] = {
    **TAG,
    "description": f"A user by name. Users are added by the operators of the service.{ALONE}",
    "parameters": [USERNAME, IF_NONE_MATCH, IF_MATCH],
    "responses": {
        "200": {**response("Successful Response", "User"), "headers": ETAG},
        "304": {"description": "The client has this user already", "headers": ETAG},
        **NOT_FOUND,
        **CHANGED,
        **UNAVAILABLE,
    },
}
