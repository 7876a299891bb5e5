"""The database: connections, statements, and many callers for one query."""

from service.database.connections import connected

__all__ = ["connected"]
