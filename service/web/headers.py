"""The header fields of a request, as they are in the scope. Starlette's `Headers` copies them all.

Names are in lower case.
"""

from collections.abc import Collection

from starlette.types import Scope


def has_any(scope: Scope, names: Collection[bytes]) -> bool:
    """Whether there is a field with one of these names."""
    for name, _ in scope["headers"]:  # noqa: SIM110 - half the time of any()
        if name in names:
            return True
    return False


def first(scope: Scope, name: bytes) -> str:
    """The first value of a field; empty without one."""
    for one, value in scope["headers"]:
        if one == name:
            return str(value, "latin-1")
    return ""
