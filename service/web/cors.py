"""Cross-origin requests (CORS)."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from service.settings import CORS_ORIGINS
from service.web.errors import error_response

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
EXPOSED_HEADERS = [
    "Content-Location",
    "ETag",
    "Link",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "X-Request-ID",
    "X-Total-Count",
]


class CORS(CORSMiddleware):
    """Allows the origins of CORS_ORIGINS. A refused preflight is JSON, like every error."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            app,
            allow_origins=CORS_ORIGINS,
            allow_methods=METHODS,
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        headers = {"Vary": response.headers["vary"]}
        return error_response(bytes(response.body).decode(), response.status_code, headers)
