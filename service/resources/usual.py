"""The usual operations on a resource, each with its description for the OpenAPI document."""

from service.resources.changes import Changes
from service.resources.definition import Definition
from service.resources.descriptions import Descriptions
from service.resources.items import Items
from service.web.routing import Operation


class Usual:
    """Operations by the names that they have in the OpenAPI document. `about` is a sentence.

    `items` has the handlers, and the queries for an operation of another kind.
    """

    def __init__(self, definition: Definition, about: str) -> None:
        self.items = Items(definition)
        self._describe = Descriptions(definition, about)
        self.schemas = self._describe.schemas

    def listing(self, name: str) -> Operation:
        return Operation(name, self.items.listing, self._describe.listing())

    def changes(self, name: str) -> Operation:
        """Follows the items as they change. It is offered with LIVE alone."""
        changes = Changes(self.items.definition, self.items.owner_of)
        return Operation(name, changes.follow, self._describe.changes(), changes.watched)

    def create(self, name: str) -> Operation:
        return Operation(name, self.items.create, self._describe.create())

    def create_many(self, name: str) -> Operation:
        return Operation(name, self.items.create_many, self._describe.create_many())

    def read(self, name: str) -> Operation:
        return Operation(name, self.items.read, self._describe.read())

    def replace(self, name: str) -> Operation:
        return Operation(name, self.items.replace, self._describe.replace())

    def change(self, name: str) -> Operation:
        return Operation(name, self.items.change, self._describe.change())

    def delete(self, name: str) -> Operation:
        return Operation(name, self.items.delete, self._describe.delete())
