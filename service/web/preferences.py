"""What a request says of its answer: conditions (RFC 9110), Prefer (RFC 7240) and Accept."""

import hashlib
import re

from starlette.exceptions import HTTPException
from starlette.requests import Request

_CONDITIONS = {b"if-match", b"if-none-match"}
_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_TAGS = re.compile(rf"[ \t,]*(?:{_TAG.pattern}[ \t]*(?:,[ \t,]*|$))*")
# An item of a list, in which a comma may stand between quotes.
_ITEM = re.compile(r'(?:[^,"]|"[^"]*"?)+')


def etag(body: bytes) -> str:
    """A strong entity tag: the same for the same bytes and, as good as ever, no others."""
    return f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def is_conditional(request: Request) -> bool:
    for name, _ in request.scope["headers"]:  # noqa: SIM110 - half the time of any()
        if name in _CONDITIONS:
            return True
    return False


def check(request: Request, tag: str) -> None:
    """Evaluates the conditions on a representation that there is (RFC 9110, section 13.2.2).

    Raises HTTPException 412, or 304 for a GET or HEAD whose client has it already.
    """
    if "if-match" in request.headers and not _names(request, "if-match", tag, weak=False):
        raise HTTPException(412)
    if "if-none-match" in request.headers and _names(request, "if-none-match", tag, weak=True):
        if request.method in ("GET", "HEAD"):
            raise HTTPException(304, headers={"ETag": tag})
        raise HTTPException(412)


def _names(request: Request, header: str, tag: str, weak: bool) -> bool:
    """Whether the header is `*` or lists the tag; garbage lists nothing."""
    value = ", ".join(request.headers.getlist(header)).strip()
    if value == "*":
        return True
    if not _TAGS.fullmatch(value):
        return False
    return any(strong == tag and (weak or not mark) for mark, strong in _TAG.findall(value))


def wants_minimal(request: Request) -> bool:
    """Whether `Prefer: return=minimal` asks for an answer without a body."""
    if "prefer" not in request.headers:
        return False
    items = _ITEM.findall(",".join(request.headers.getlist("prefer")).lower())
    names = (re.sub('[" \t]', "", item.partition(";")[0]) for item in items)
    return next((name for name in names if name.startswith("return=")), "") == "return=minimal"


def wants_lines(request: Request) -> bool:
    """Whether `Accept` names NDJSON, and JSON not as much."""
    values = [value for name, value in request.scope["headers"] if name == b"accept"]
    accept = b",".join(values).decode("latin-1").lower()
    if "ndjson" not in accept:
        return False
    qualities = {"application/x-ndjson": 0.0, "application/json": 0.0}
    for item in accept.split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if name in qualities:
            quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            valid = re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", quality)
            qualities[name] = float(quality) if valid else 0.0
    return qualities["application/x-ndjson"] > qualities["application/json"]
