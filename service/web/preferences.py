"""The preferences of a request: Prefer (RFC 7240) and Accept (RFC 9110)."""

import re

from starlette.requests import Request

# An item of a list; it may contain a comma in quotes.
_ITEM = re.compile(r'(?:[^,"]|"[^"]*"?)+')


def wants_minimal(request: Request) -> bool:
    """Whether `Prefer: return=minimal` asks for an answer without a body."""
    if "prefer" not in request.headers:
        return False
    items = _ITEM.findall(",".join(request.headers.getlist("prefer")).lower())
    names = (re.sub('[" \t]', "", item.partition(";")[0]) for item in items)
    return next((name for name in names if name.startswith("return=")), "") == "return=minimal"


def wants_ndjson(request: Request) -> bool:
    """Whether `Accept` names NDJSON with a higher quality than JSON."""
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
