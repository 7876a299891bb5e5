"""The ids of a request: its own, and those of the trace that it belongs to.

A trace is read as W3C Trace Context, level 1, defines it: https://www.w3.org/TR/trace-context-1/.
"""

import itertools
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

# Routers send and accept these ids. Any other value is replaced.
_is_request_id = re.compile(rb"[A-Za-z0-9+/=-]{20,200}").fullmatch
# An id is a random prefix of the process and a counter: cheaper than random bytes for each.
_ID_PREFIX = os.urandom(10).hex().encode()
_ids = itertools.count()

# Version 00 ends with its flags. A later one may go on after a hyphen.
_parse = re.compile(
    rb"(?!ff|00.{54})[0-9a-f]{2}"
    rb"-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?",
    re.DOTALL,
).fullmatch


class Trace(NamedTuple):
    """The trace of a request, in hexadecimal. `span_id` is its parent: what its client does."""

    trace_id: str
    span_id: str
    trace_flags: str


def read_ids(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, Trace | None]:
    """The id of a request, a new one if it has none, and its trace. It has one field or none."""
    request_id, parent = None, None
    for name, value in headers:
        if name == b"x-request-id":
            if request_id is None and _is_request_id(value):
                request_id = bytes(value)
        elif name == b"traceparent":
            parent = value if parent is None else b""
    if request_id is None:
        request_id = b"%b%012x" % (_ID_PREFIX, next(_ids))
    return request_id, parse(parent) if parent else None


def parse(parent: bytes) -> Trace | None:
    """The trace that a field `traceparent` names; None if it is not valid."""
    match = _parse(parent)
    return Trace(*(part.decode() for part in match.groups())) if match else None


def names(request_id: bytes, trace: Trace | None) -> dict[str, str]:
    """The ids by the names that they have in JSON."""
    return {"request_id": request_id.decode()} | (trace._asdict() if trace else {})


def logfmt(trace: Trace) -> str:
    """The ids of a trace, as further fields of a line."""
    return f" trace_id={trace.trace_id} span_id={trace.span_id}"
