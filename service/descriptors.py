"""File descriptors: the process's limit, and how many connections of clients fit into it."""

import sys
from contextlib import suppress

if sys.platform != "win32":
    import resource

# More clients than this are not kept connected: an idle connection takes some 10 KB of memory.
_MOST = 20_000
# Files of the database, of the metrics and of the program, and clients that are just accepted.
_MIN_SPARE = 64


def _raise_limit() -> int:
    """Raises the soft limit of this process as far as it has a use for it, and returns it."""
    wanted = 2 * _MOST
    if sys.platform == "win32":
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else max(soft, min(wanted, hard))
        # Systems may have a limit that is lower than the hard one.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else soft


def _connections(limit: int) -> int:
    return max(1, min(_MOST, limit - max(_MIN_SPARE, limit // 4)))


# The most connections of clients. With more, the oldest idle ones are closed.
MAX_CONNECTIONS = _connections(_raise_limit())
