"""An asynchronous JSON notes service on Starlette, encode/databases and SQLAlchemy Core."""

__version__ = "1.0.0"
