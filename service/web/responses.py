"""Responses: JSON that is encoded already, answers to writes, links to further pages."""

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, unquote_plus

import orjson
from starlette.requests import Request
from starlette.responses import Response

# Newline-delimited JSON.
NDJSON = "application/x-ndjson"


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


def lines_of(values: Sequence[object]) -> bytes:
    """Newline-delimited JSON."""
    return b"".join(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE) for value in values)


def written(
    minimal: bool,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """The answer to a write: the body, or none where the client prefers a minimal one."""
    extra = {} if headers is None else dict(headers)
    if minimal:
        extra["Preference-Applied"] = "return=minimal"
        return Response(status_code=204, headers=extra)
    raw = [(name.encode(), value.encode("latin-1")) for name, value in extra.items()]
    return JSONBytes(body, headers=raw, media_type=media_type)


def next_link(request: Request, after: int) -> tuple[bytes, bytes]:
    """The Link header (RFC 8288) to the page that follows."""
    # The other parameters stay as they were sent, which parsing them might not give.
    items = request.url.query.split("&")
    kept = [item for item in items if unquote_plus(item.partition("=")[0]) != "after"]
    # But for what would end the URL between its angle brackets.
    kept = [re.sub(r'[<>"\\^`{|}\s]', lambda found: quote(found[0]), item) for item in kept]
    url = request.url.replace(query="&".join([*filter(None, kept), f"after={after}"]))
    return b"link", f'<{url}>; rel="next"'.encode("latin-1")
