"""What is recorded of a table."""

from typing import NamedTuple

import orjson


class Watched(NamedTuple):
    """A table, by name, with the names of its columns.

    `new` are those that followers see or that select what they see, `old` those that select.
    `texts` are those of `new` with texts.
    """

    table: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def columns(self) -> str:
        """The columns as JSON. Changes that were recorded with others can't be told."""
        return orjson.dumps([self.old, self.new, self.texts]).decode()
