"""The database: connections, statements, and coalescing of queries."""

from service.database.connections import connected

__all__ = ["connected"]
