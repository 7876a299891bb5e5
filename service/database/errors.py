"""The error that callers of the database handle."""

from service.database.dialect import dialect


class DatabaseUnavailable(Exception):
    """The database is down, full or slow. The statement may have run."""

    def reason(self) -> str:
        """The reason in one sentence, without details such as addresses."""
        cause = self.__cause__
        return f"The database {dialect.state(cause)}: {type(cause).__name__}"


class NotConnected(DatabaseUnavailable):
    """Nobody has opened the database."""

    def __init__(self) -> None:
        super().__init__(
            "The database is not open: run the application's lifespan,"
            " or enter connected() of service.database"
        )

    def reason(self) -> str:
        return str(self)
