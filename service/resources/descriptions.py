"""What the OpenAPI document says of the usual operations on a resource."""

from typing import Any

from marshmallow import Schema, fields
from sqlalchemy import UniqueConstraint

from service.openapi.parts import (
    BODY_ERRORS,
    IF_MATCH,
    IF_NONE_MATCH,
    INVALID,
    KEY,
    PREFER,
    TAGS,
    UNAVAILABLE,
    header,
    json_content,
    parameter,
    response,
    tag,
)
from service.resources.definition import MAX_BATCH, MAX_PAGE, MAX_Q, Definition
from service.resources.orders import Sort
from service.schemas.fields import MAX_ID, NO_NUL, Choice, Integer, Text, Timestamp

_A_TAG = '"5d3f0a0c7e2b4f6a8c9d0e1f"'
_APPLIED = {"Preference-Applied": header("The preference that was applied", "return=minimal")}
_MINIMAL = {"204": {"description": "Success without a body (return=minimal)", "headers": _APPLIED}}
_PREFER_NDJSON = "`Accept: application/x-ndjson`"

Description = dict[str, Any]


def _type_of(field: fields.Field[Any]) -> dict[str, Any]:
    """The schema of a query parameter. TypeError for a field that none is known for."""
    match field:
        case fields.Boolean():
            return {"type": "boolean"}
        case Integer():
            return {"type": "integer", "minimum": field.ge, "maximum": field.le}
        case fields.Date():
            return {"type": "string", "format": "date"}
        case Timestamp():
            return {"type": "string", "format": "date-time"}
        case Choice():
            return {"type": "string", "enum": list(field.choices)}
        case Text():
            bound = {} if field.max_length is None else {"maxLength": field.max_length}
            return {"type": "string", **bound, "pattern": NO_NUL}
    raise TypeError(f"{field!r} is no field of a filter")


class Descriptions:
    """The descriptions of the operations of `Items`, by the same names. `about` is a sentence."""

    def __init__(self, definition: Definition, about: str) -> None:
        self._definition = definition
        name, plural = definition.name, definition.plural
        self._a_name = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        self._tag = tag(plural.capitalize(), about)
        self._new, self._item = type(definition.new).__name__, type(definition.shape).__name__
        self._patch = f"{self._item}Patch"
        self.schemas: dict[str, Schema] = {
            self._new: definition.new,
            self._patch: definition.patch(),
            self._item: definition.shape,
        }
        self._items = {"type": "array", "items": {"$ref": f"#/components/schemas/{self._item}"}}
        etag = {"ETag": header(f"The {name}'s entity tag", _A_TAG)}
        path = {"Content-Location": header(f"The path of the {name}", f"/{plural}/1")}
        found = {**response("Successful Response", self._item), "headers": etag}
        self._found = {
            "200": found,
            "304": {"description": f"The {name} has not changed", "headers": etag},
        }
        self._written = {"200": {**found, "headers": {**etag, **path}}}
        # The tag of what is stored is no tag of what was sent (RFC 9110, section 9.3.4).
        self._minimal_put = {"204": {**_MINIMAL["204"], "headers": {**_APPLIED, **path}}}
        self._minimal_patch = {"204": {**_MINIMAL["204"], "headers": {**_APPLIED, **etag, **path}}}
        table = definition.table
        unique = [one for one in table.constraints if isinstance(one, UniqueConstraint)]
        self._conflict = (
            {"409": response(f"Another {name} already has this value", "HTTPValidationError")}
            if unique or any(index.unique for index in table.indexes)
            else {}
        )
        self._not_found = {"404": response(f"There is no such {name}", "Error")}
        self._changed = {
            "412": response("The condition in If-Match or If-None-Match is not met", "Error")
        }
        self._conditions = (
            "If the condition in `If-Match` or `If-None-Match` is not met, nothing changes and the"
            " answer is a 412."
        )
        an_id = {"minimum": 1, "maximum": MAX_ID}
        about = f"The {name}'s id"
        self._id = parameter("path", f"{name}_id", about, 1, type="integer", **an_id)

    def listing(self) -> Description:
        plural = self._definition.plural
        sorted_too = ", or of `sort`" if self._definition.sorts else ""
        heading = plural.replace("_", " ").title()
        return {
            **self._tag,
            "description": (
                f"Lists {plural} in the order of their ids{sorted_too}.\n\n"
                "With `limit` the answer is one page. If there is a next page, the `Link` header "
                "leads to it.\n\n"
                f"With {_PREFER_NDJSON} the answer has one {self._definition.name} a line, without"
                " brackets and commas.\n\n"
                "Other errors have a sentence in `detail`: 406 if the client accepts neither gzip "
                "nor the plain body, 412 if the condition in `If-Match` is not met, 414 if the "
                "query has more than 1,000 parameters, and 503 with `Retry-After` if the database "
                "is unavailable, full or slow."
            ),
            "parameters": self._listing_parameters(),
            "responses": {
                "200": {
                    **response(
                        "Successful Response",
                        # FastAPI's title.
                        {**self._items, "title": f"Response Read {heading} {heading}  Get"},
                    ),
                    "headers": {
                        "Link": header(
                            "The URL of the next page, with rel=next (RFC 8288)",
                            f'<http://localhost:8000/{plural}/?limit=100&after=100>; rel="next"',
                        ),
                        "ETag": header(
                            "The listing's entity tag. A listing without `limit` of more than"
                            f" {MAX_PAGE:,} {plural} or 2 MB of text has none.",
                            _A_TAG,
                        ),
                        "X-Total-Count": header(
                            f"The number of {plural} that the filters select, with count=exact",
                            3,
                            "integer",
                        ),
                        "Preference-Applied": header(
                            "The preference that was applied", "count=exact"
                        ),
                    },
                },
                "304": {
                    "description": "The listing has not changed",
                    "headers": {"ETag": header("The listing's entity tag", _A_TAG)},
                },
                **INVALID,
            },
        }

    def _listing_parameters(self) -> list[dict[str, Any]]:
        plural = self._definition.plural
        page = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}
        after = {"type": "integer", "minimum": 0, "maximum": MAX_ID}
        order = {"type": "string", "enum": ["asc", "desc"], "default": "asc"}
        about = "The page begins after this id. The `Link` header gives it."
        found = [
            parameter("query", "limit", f"The greatest number of {plural} on a page", 100, **page),
            parameter("query", "after", about, 100, **after),
            parameter("query", "order", "The order of the ids", "desc", **order),
        ]
        for name, (_, about, example, _) in self._definition.filters.items():
            kind = _type_of(self._definition.filter_field(name))
            found.append(parameter("query", name, about, example, **kind))
        sort = self._definition.listing_query().fields.get("sort")
        if isinstance(sort, Sort):
            name = self._definition.sorts[0].name
            about = (
                "Names of fields, separated by commas. A minus before a name reverses its order."
                " Items with equal values are in the order of their ids. `sort`"
                " replaces `order`."
            )
            kind = {"type": "string", "pattern": sort.pattern}
            found.append(parameter("query", "sort", about, f"-{name},id", **kind))
            about = "With `sort`, the place where the page begins. The `Link` header gives it."
            found.append(parameter("query", "cursor", about, "WzEsMl0", type="string"))
        if search := self._definition.search:
            about = f"Only {plural} that contain this text, in upper or lower case"
            text = {"type": "string", "maxLength": MAX_Q, "pattern": NO_NUL}
            found.append(parameter("query", "q", about, search.example, **text))
        tags = {"type": "string", "pattern": TAGS}
        about = "Entity tags. If the listing has one of them, the answer is a 304."
        count = f"`count=exact` asks for the number of {plural} that the filters select (RFC 7240)"
        return [
            *found,
            parameter("header", "If-None-Match", about, _A_TAG, **tags),
            parameter("header", "Prefer", count, "count=exact", type="string"),
        ]

    def changes(self) -> Description:
        plural, name = self._definition.plural, self._definition.name
        about = (
            "The id of an event: what happened after it follows. `0` is the beginning of all that"
            " is kept."
        )
        id_of_event = {"type": "string", "pattern": r"^(0|[0-9a-f.-]+)?$"}
        found = [parameter("query", "after", about, "0", **id_of_event)]
        for other, (_, about_filter, example, _) in self._definition.filters.items():
            kind = _type_of(self._definition.filter_field(other))
            found.append(parameter("query", other, about_filter, example, **kind))
        about = "Like `after`. A browser's EventSource sends it when it connects again."
        found.append(parameter("header", "Last-Event-ID", about, "0", **id_of_event))
        example = 'event: created\nid: …\ndata: {"id": 1, …}\n\n'
        return {
            **self._tag,
            "description": (
                f"Follows the {plural} as they change, by Server-Sent Events.\n\n"
                f"`created` and `changed` have the {name} as `data`, `deleted` its id alone. With a"
                f" filter, `created` also tells of {plural} that the filter selects now, and"
                " `deleted` of those that it doesn't select any more.\n\n"
                "Without an id the first event is `start`. All that happens later follows: after"
                f" `start`, list the {plural}. If changes after an id are not kept any more, the"
                " first event is `reset`: list again.\n\n"
                "Other errors have a sentence in `detail`: 503 with `Retry-After` if the database"
                " is unavailable, if the changes are not recorded, or if too many clients follow."
            ),
            "parameters": found,
            "responses": {
                "200": {
                    "description": "Events, until the client or the service ends them",
                    "content": {
                        "text/event-stream": {"schema": {"type": "string", "examples": [example]}}
                    },
                },
                **INVALID,
                **UNAVAILABLE,
            },
        }

    def create(self) -> Description:
        return {
            **self._tag,
            "description": (
                f"Stores {self._a_name} and gives it an id.\n\n"
                "With `Prefer: return=minimal` the answer is a 204 without a body. `Location` has "
                f"the {self._definition.name}'s URL.\n\n"
                "Other errors have a sentence in `detail`: 400 if the body can't be decoded, 413 "
                "if it is too large, 415 if it has a `Content-Encoding`, and 503 with "
                "`Retry-After` if the database is unavailable, full or slow."
            ),
            "parameters": [KEY, PREFER],
            "requestBody": {"required": True, **json_content(self._new)},
            "responses": {**self._written, **self._conflict, **INVALID},
        }

    def create_many(self) -> Description:
        plural = self._definition.plural
        new = {
            "type": "array",
            "items": {"$ref": f"#/components/schemas/{self._new}"},
            "minItems": 1,
            "maxItems": MAX_BATCH,
        }
        return {
            **self._tag,
            "description": (
                f"Stores up to {MAX_BATCH:,} {plural}, all or none.\n\n"
                f"With `Content-Type: application/x-ndjson` each line of the body is "
                f"{self._a_name}, and with {_PREFER_NDJSON} each line of the answer."
            ),
            "parameters": [KEY, PREFER],
            "requestBody": {"required": True, **json_content(new)},
            "responses": {
                "200": response(
                    f"The stored {plural}, in the order in which they were sent", self._items
                ),
                **_MINIMAL,
                **self._conflict,
                **BODY_ERRORS,
            },
        }

    def read(self) -> Description:
        name = self._definition.name
        return {
            **self._tag,
            "description": (
                f"Reads {self._a_name} by its id. If `If-None-Match` has the `ETag` of an earlier "
                f"answer and the {name} has not changed, the answer is a 304 without a body."
            ),
            "parameters": [self._id, IF_NONE_MATCH, IF_MATCH],
            "responses": {**self._found, **self._not_found, **self._changed, **UNAVAILABLE},
        }

    def replace(self) -> Description:
        about = f"Replaces all fields of {self._a_name}."
        return self._write(about, self._new, self._minimal_put)

    def change(self) -> Description:
        about = f"Changes those fields of {self._a_name} that are in the body."
        return self._write(about, self._patch, self._minimal_patch)

    def _write(self, about: str, schema: str, minimal: Description) -> Description:
        return {
            **self._tag,
            "description": f"{about} {self._conditions}",
            "parameters": [self._id, IF_MATCH, IF_NONE_MATCH, PREFER],
            "requestBody": {"required": True, **json_content(schema)},
            "responses": {
                **self._written,
                **minimal,
                **self._not_found,
                **self._conflict,
                **self._changed,
                **BODY_ERRORS,
            },
        }

    def delete(self) -> Description:
        name, table = self._definition.name, self._definition.table
        keys = [key for other in table.metadata.tables.values() for key in other.foreign_keys]
        is_referred_to = any(key.column.table is table for key in keys)
        about = f"Other items refer to this {name}"
        referred = {"409": response(about, "Error")} if is_referred_to else {}
        return {
            **self._tag,
            "description": f"Deletes {self._a_name} permanently. {self._conditions}",
            "parameters": [self._id, IF_MATCH, IF_NONE_MATCH],
            "responses": {
                "204": {"description": f"The {name} was deleted"},
                **self._not_found,
                **referred,
                **self._changed,
                **UNAVAILABLE,
            },
        }
