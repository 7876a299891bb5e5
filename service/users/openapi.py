"""What the document says of the operations on users."""

from typing import Any

from service.openapi.parts import UNAVAILABLE, parameter, response, tag
from service.users.schemas import MAX_USERNAME, user_out

SCHEMAS = {"User": user_out}

TAG = tag("Users", "Those who may come in, where the service asks for a token.")
NOT_FOUND = {"404": response("There is no such user", "Error")}
USERNAME = parameter(
    "path",
    "username",
    "The user's name, in upper or lower case",
    "bob",
    type="string",
    pattern=f"^[A-Za-z0-9._-]{{1,{MAX_USERNAME}}}$",
)

# By the name of the operation's function.
OPERATIONS: dict[str, dict[str, Any]] = {
    "read_user": {
        **TAG,
        "description": "A user by name. Users are added by whoever operates the service.",
        "parameters": [USERNAME],
        "responses": {"200": response("Successful Response", "User"), **NOT_FOUND, **UNAVAILABLE},
    },
}
