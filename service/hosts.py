"""The Host of a request (RFC 9112, section 3.2)."""

import ipaddress
import re
from functools import lru_cache

# uri-host [ ":" port ] of RFC 3986, except for addresses of the future.
_FIELD = re.compile(
    rb"(?:\[([0-9a-f:.]+)\]|((?:[a-z0-9._~!$&'()*+,;=-]|%[0-9a-f]{2})*))(?::[0-9]{0,5})?"
)


# A name of DNS has at most 253 characters (RFC 1035, section 2.3.4).
MAX_BYTES = 300


def name_of(field: bytes) -> str | None:
    """The host in lower case, without port, brackets and final dot; None for what is no host.

    It is empty where the field is, which is legal.
    """
    return _name_of(field) if len(field) <= MAX_BYTES else None


@lru_cache(100)
def _name_of(field: bytes) -> str | None:
    found = _FIELD.fullmatch(field.lower())
    if found is None:
        return None
    if found[1] is None:
        return found[2].decode().removesuffix(".")
    try:
        return str(ipaddress.IPv6Address(found[1].decode()))
    except ValueError:
        return None


def only_name(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The host that a request names; empty if it names none, None if it names several."""
    fields = [value for name, value in headers if name == b"host"]
    if len(fields) > 1:
        return None
    return name_of(fields[0]) if fields else ""
