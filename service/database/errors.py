"""What callers of the database are told in trouble."""

from service.database.dialect import dialect


class DatabaseUnavailable(Exception):
    """The database is away, full or slow; the statement may or may not have been carried out."""

    def reason(self) -> str:
        """What is the matter, in a sentence without details."""
        cause = self.__cause__
        matter = "not migrated" if dialect.is_not_migrated(cause) else "unavailable"
        return f"The database is {matter}: {type(cause).__name__}"
