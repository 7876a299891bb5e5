"""The one error that callers of the database handle."""

from service.database.dialect import dialect


class DatabaseUnavailable(Exception):
    """The database is down, full or slow. The statement may have run."""

    def reason(self) -> str:
        """The reason in one sentence, without details such as addresses."""
        cause = self.__cause__
        return f"The database {dialect.state(cause)}: {type(cause).__name__}"
