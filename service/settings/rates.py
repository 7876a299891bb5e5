"""Parses the number of requests that a client may send in a time."""

import re
from typing import NamedTuple

SECONDS = {"second": 1, "minute": 60, "hour": 3600}


class Rate(NamedTuple):
    """At most `requests` in a `unit`, which is a key of SECONDS."""

    requests: int
    unit: str


def parse_rate(text: str) -> Rate | None:
    """`100/minute`; None for an empty text. Raises ValueError for anything else."""
    if not text:
        return None
    found = re.fullmatch("([1-9][0-9]{0,5})/(second|minute|hour)", text, re.ASCII)
    if found is None:
        raise ValueError(
            "must be a number from 1 to 999999, a slash, and second, minute or hour: 100/minute"
        )
    return Rate(int(found[1]), found[2])
