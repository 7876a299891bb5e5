"""Users: what can be done with them, without any web framework."""

from service.users.queries import get_user

__all__ = ["get_user"]
