"""Reads libpq's password file, with its escapes, which asyncpg leaves in.

https://www.postgresql.org/docs/current/libpq-pgpass.html
"""

import getpass
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A backslash takes the meaning from a colon or a backslash.
_FIELD = re.compile(r"((?:[^:\\]|\\.?)*)(?::|$)")
_ESCAPED = re.compile(r"\\(.)")


def find_password(options: Mapping[str, Any]) -> str | None:
    """The password for asyncpg's options, from `passfile`, PGPASSFILE or ~/.pgpass.

    None if no line fits. Then asyncpg goes on looking for one.
    """
    if os.getenv("PGPASSWORD"):
        return None
    try:
        file = Path(options.get("passfile") or os.getenv("PGPASSFILE") or Path.home() / ".pgpass")
        user = options.get("user") or os.getenv("PGUSER") or getpass.getuser()
        mode = file.stat().st_mode
        # As libpq, it trusts no file that others may read.
        if not stat.S_ISREG(mode) or (os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO)):
            return None
        lines = file.read_text("utf-8").splitlines()
    except (OSError, RuntimeError, UnicodeError):
        return None
    host = str(options.get("host") or "localhost")
    wanted = (
        "localhost" if host.startswith("/") else host,
        str(options.get("port") or 5432),
        options.get("database") or os.getenv("PGDATABASE") or user,
        user,
    )
    for line in lines:
        if not line.startswith("#"):
            fields = [_ESCAPED.sub(r"\1", field) for field in _FIELD.findall(line)]
            pairs = zip(fields[:4], wanted, strict=False)
            if len(fields) > 4 and all(field in ("*", value) for field, value in pairs):
                return fields[4] or None
    return None
