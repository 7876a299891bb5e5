"""The SQLite file: whether the one that is open is still the one at its path.

In WAL mode SQLite itself doesn't look. It goes on writing to a file that was deleted, replaced or
truncated, and nobody can read that later (https://www.sqlite.org/howtocorrupt.html, section 4).
"""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path


class FileLost(sqlite3.OperationalError):
    """The open file is not the one at its path. What is written to it is lost."""


class Damaged(sqlite3.OperationalError):
    """A part of the file is missing, or is nonsense."""


class OpenFile:
    """What the file was when it was opened.

    The file is never opened here: closing it would drop SQLite's locks
    (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        real = os.path.realpath(path)
        self._log, self._index = real + "-wal", real + "-shm"
        # Device and inode, by path.
        self._known: dict[str, tuple[int, int]] = {}

    def check(self) -> os.stat_result | None:
        """The file at the path; None if there is none yet. Raises FileLost."""
        return self._find(self.path)

    def check_log(self) -> int:
        """The bytes of the write-ahead log. Raises FileLost if another one or none is at its path.

        Call it after SQLite has used the file: then it has opened the log, if there is one at all,
        and keeps it while a connection is open.
        """
        log = self._find(self._log)
        return 0 if log is None else log.st_size

    def share_rights(self) -> None:
        """Gives the log and its index the file's rights, as SQLite does when it makes them."""
        for path in (self._log, self._index):
            with suppress(OSError):
                os.chmod(path, os.stat(self.path).st_mode)

    def _find(self, path: str) -> os.stat_result | None:
        known = self._known.get(path)
        try:
            found = os.stat(path)
        except OSError:
            if known is None:
                return None
            raise FileLost(f"{path} is missing") from None
        identity = found.st_dev, found.st_ino
        if known is None:
            self._known[path] = identity
        elif known != identity:
            raise FileLost(f"{path} is not the file that was opened")
        return found
