"""Users. An import of this package loads no web framework."""

from service.users.queries import get_user

__all__ = ["get_user"]
