"""What a request prefers of its answer: Prefer (RFC 7240) and Accept (RFC 9110)."""

import re

from starlette.requests import Request

# An item of a list, in which a comma may stand between quotes.
_ITEM = re.compile(r'(?:[^,"]|"[^"]*"?)+')


def wants_minimal(request: Request) -> bool:
    """Whether `Prefer: return=minimal` asks for an answer without a body."""
    return _preference(request, "return") == "minimal"


def wants_count(request: Request) -> bool:
    """Whether `Prefer: count=exact` asks for the number of all that a listing selects."""
    return _preference(request, "count") == "exact"


def _preference(request: Request, wanted: str) -> str:
    """The value that is preferred, in lower case; of several the first one."""
    values = [value for name, value in request.scope["headers"] if name == b"prefer"]
    if values:
        for item in _ITEM.findall(b",".join(values).decode("latin-1").lower()):
            name, _, value = re.sub('[" \t]', "", item.partition(";")[0]).partition("=")
            if name == wanted:
                return str(value)
    return ""


def wants_ndjson(request: Request) -> bool:
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
