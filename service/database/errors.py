"""The one error that callers of the database handle."""

from service.database.dialect import dialect


class DatabaseUnavailable(Exception):
    """The database is down, full or slow. The statement may have run."""

    def reason(self) -> str:
        """The reason in one sentence, without details such as addresses."""
        cause = self.__cause__
        state = "is unavailable"
        if dialect.is_not_migrated(cause):
            state = "is not migrated"
        elif dialect.takes_no_writes(cause):
            state = "takes no writes"
        return f"The database {state}: {type(cause).__name__}"
