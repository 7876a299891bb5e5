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

TAG = tag("Users", "The users of a service that requires tokens.")
NOT_FOUND = {"404": response("There is no such user", "Error")}
CHANGED = {"412": response("The condition in If-Match is not met", "Error")}
ETAG = {"ETag": header("The user's entity tag", '"5d3f0a0c7e2b4f6a8c9d0e1f"')}
USERNAME = parameter(
    "path",
    "username",
    "The user's name, in upper or lower case",
    "bob",
    type="string",
    pattern=f"^[A-Za-z0-9._-]{{1,{MAX_USERNAME}}}$",
)

ALONE = " Each user can read only their own entry." if ACCESS == "private" else ""

READ_USER: dict[str, Any] = {
    **TAG,
    "description": f"Reads a user by name. The operators of the service add users.{ALONE}",
    "parameters": [USERNAME, IF_NONE_MATCH, IF_MATCH],
    "responses": {
        "200": {**response("Successful Response", "User"), "headers": ETAG},
        "304": {"description": "The user has not changed", "headers": ETAG},
        **NOT_FOUND,
        **CHANGED,
        **UNAVAILABLE,
    },
}
