"""Writes any JSON that a client may have sent, in slices. `json` can't be interrupted."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from service.schemas.slices import in_slices

_write_scalar = json.JSONEncoder(ensure_ascii=False).encode
# Two surrogates that make a character stay together.
_PARTS = re.compile("(?s)(?:[\ud800-\udbff][\udc00-\udfff]|.){1,4096}")


async def encode(value: Any) -> bytes:
    """Compact JSON in UTF-8.

    NaN and the infinities become null, because JSON lacks them. Lone surrogates become U+FFFD,
    because UTF-8 lacks them.
    """
    text = "".join(await in_slices(str, _write(value)))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return b"".join(await in_slices(_replace_surrogates, _PARTS.finditer(text)))


def _replace_surrogates(part: re.Match[str]) -> bytes:
    return part[0].encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _write(value: Any) -> Iterator[str]:
    """The text in pieces. Not by recursion, because lists may be nested deeply."""
    parents = [_pieces(value)]
    while parents:
        piece = next(parents[-1], None)
        if piece is None:
            parents.pop()
        elif isinstance(piece, str):
            yield piece
        else:
            parents.append(piece)


def _pieces(value: Any) -> Iterator[Any]:
    """The text of a value, with an iterator in the place of each value in it."""
    if isinstance(value, dict):
        before = "{"
        for key, item in value.items():
            yield f"{before}{_write_scalar(key)}:"
            yield _pieces(item)
            before = ","
        yield "}" if value else "{}"
    elif isinstance(value, list | tuple):
        before = "["
        for item in value:
            yield before
            yield _pieces(item)
            before = ","
        yield "]" if value else "[]"
    elif isinstance(value, float) and not math.isfinite(value):
        yield "null"
    else:
        yield _write_scalar(value)
