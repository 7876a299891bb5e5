"""What is recorded of a table."""

from typing import NamedTuple

import orjson

# It changes with the triggers that `live on` makes.
VERSION = 1


class Watched(NamedTuple):
    """A table, by name, with the names of its columns.

    `new` are those that followers see or that select what they see, `old` those that select.
    `texts` are those of `new` with texts, or with what SQLite stores as a text.
    """

    table: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def columns(self) -> str:
        """The columns and the version of the triggers, as JSON. Others have to be made again."""
        return orjson.dumps([VERSION, self.old, self.new, self.texts]).decode()
