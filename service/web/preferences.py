"""The preferences of a request: Prefer (RFC 7240), Accept and Accept-Encoding (RFC 9110)."""

import re

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from service.web.headers import has_any

# An item of a list; it may contain a comma in quotes.
_ITEM = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')

# Below each quality that can be given.
UNNAMED = 0.0001

MAX_NEGOTIATION_BYTES = 1000

_ACCEPT, _PREFER = {b"accept"}, {b"prefer"}


def wants_minimal(request: Request) -> bool:
    """Whether `Prefer: return=minimal` asks for an answer without a body."""
    return _preference(request, "return") == "minimal"


def wants_count(request: Request) -> bool:
    """Whether `Prefer: count=exact` asks for the number of all that a listing selects."""
    return _preference(request, "count") == "exact"


def _preference(request: Request, wanted: str) -> str:
    """The value that is preferred, in lower case; of several the first one."""
    if not has_any(request.scope, _PREFER):
        return ""
    preferred = b",".join(value for name, value in request.scope["headers"] if name == b"prefer")
    # A longer one would hold the event loop.
    if len(preferred) <= MAX_NEGOTIATION_BYTES:
        for item in _ITEM.findall(preferred.decode("latin-1").lower()):
            name, _, value = item.partition(";")[0].partition("=")
            if name.strip() == wanted:
                return str(value.strip().strip('"'))
    return ""


def wants_ndjson(request: Request) -> bool:
    """Whether `Accept` names NDJSON, and prefers it to JSON.

    Of two equal qualities that of a name counts more than that of a range, such as `*/*`.
    """
    if not has_any(request.scope, _ACCEPT):
        return False
    values = [value for name, value in request.scope["headers"] if name == b"accept"]
    accept = b",".join(values).lower()
    if b"ndjson" not in accept:
        return False
    qualities = _qualities(accept)
    lines, json = qualities.get("application/x-ndjson", 0.0), qualities.get("application/json")
    if json is not None:
        return lines > json
    return lines > 0 and lines >= _quality_of_range("application", qualities)


def _quality_of_range(main: str, qualities: dict[str, float]) -> float:
    """The quality of a main type's range, or else of any type (section 12.5.1)."""
    return qualities.get(f"{main}/*", qualities.get("*/*", 0.0))


def wants_gzip(request: Request, is_large: bool) -> bool:
    """Whether `Accept-Encoding` prefers gzip to no coding, or takes nothing else.

    An answer that isn't large is left as it is, if the client takes that. Raises HTTPException 406
    for a GET or HEAD that takes neither (section 12.5.3), except for health checks.
    """
    values = [value for name, value in request.scope["headers"] if name == b"accept-encoding"]
    if not values:
        return False
    qualities = _qualities(b",".join(values).lower())
    others = qualities.get("*")
    gzip = qualities.get("gzip", qualities.get("x-gzip", others or 0))
    # What isn't named is taken all the same, and preferred to nothing.
    identity = qualities.get("identity", UNNAMED if others is None else others)
    if not gzip and not identity and request.method in ("GET", "HEAD"):
        if is_health_check(request.scope):
            return False
        raise HTTPException(406)
    return gzip > 0 and (gzip >= identity if is_large else not identity)


def is_health_check(scope: Scope) -> bool:
    """Whether the path is one of a health check, behind a prefix that a router removes or not."""
    return bool(scope["path"].removeprefix(scope.get("root_path", "")).startswith("/health/"))


def _qualities(value: bytes) -> dict[str, float]:
    """The quality of each item of a header in lower case (section 12.4.2); 0 for a wrong one.

    A header that no client needs counts as empty: it would hold the event loop.
    """
    qualities: dict[str, float] = {}
    if len(value) > MAX_NEGOTIATION_BYTES:
        return qualities
    for item in value.decode("latin-1").split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        pairs = [parameter.partition("=") for parameter in parameters]
        quality = next((weight for key, _, weight in pairs if key.strip() == "q"), "1")
        valid = re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", quality)
        qualities[name] = float(quality) if valid else 0.0
    return qualities
