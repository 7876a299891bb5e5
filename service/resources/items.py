"""The usual operations on a resource. Each parses its request, calls a query, and responds."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from service import metrics
from service.database.coalescing import TURNS, coalesce
from service.database.dialect import dialect
from service.database.operations import LARGE
from service.database.statements import Run, fetch
from service.resources.constraints import Constraints
from service.resources.definition import MAX_BATCH, MAX_PAGE, Definition
from service.resources.orders import Order, read_cursor, write_cursor
from service.resources.pages import PageRequest, Pages, described
from service.resources.queries import MAX_MEDIUM, MAX_SMALL, SMALL, Place, Queries, Selection
from service.schemas.compiled import OTHER, compile_dump, compile_load, compile_usual
from service.schemas.validation import Conflict, InvalidInput, Loc, describe, load, load_all
from service.tables import Row
from service.web import budget, conditions, idempotency, preferences
from service.web.headers import first as first_header
from service.web.headers import has_any
from service.web.requests import (
    SHORT_BYTES,
    count_values,
    load_short,
    media_type,
    parse,
    parse_ndjson,
    path_id,
    read_body,
    read_query,
)
from service.web.responses import (
    NDJSON,
    Prepared,
    Stream,
    counted,
    encode_ndjson,
    next_link,
    written,
)

_KEY = {b"idempotency-key"}


class Items:
    """The usual operations on a definition's items: the public methods are Starlette's handlers.

    An operation of another kind is a function beside them, which may use `queries` and `encode`.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.queries = Queries(definition)
        self.pages = Pages(definition, self.queries)
        owner = definition.owner
        self._owner = None if owner is None else str(owner.name)
        self._records = definition.records is not None
        self._constraints = Constraints(definition.table)
        self._id_name = f"{definition.name}_id"
        self._plural = definition.plural
        self._load = compile_load(definition.new)
        self._load_usual = compile_usual(definition.new)
        self._sent = definition.new.load_fields.keys()
        self._load_changes = definition.patch().load
        self._dump = compile_dump(definition.shape)
        self._listing_query = definition.listing_query()
        # Cached: validation costs half as much as the rest of a listing, and few queries are
        # frequent.
        self._first_page = lru_cache(1000)(self._read_first_page)
        # Each may have MAX_BODY_BYTES.
        self._get: Callable[[tuple[int | None, int]], Awaitable[Row | None]] = coalesce(
            self._get_all,
            max_batch=100,
            key=itemgetter(0),
            observe=metrics.batch(f"get_{definition.plural}"),
            turns=TURNS,
        )
        self._observe_insert = metrics.batch(f"insert_{definition.plural}")
        # Each row has its owner, so those of several may share a statement.
        insert = partial(
            coalesce,
            self.queries.insert,
            observe=self._observe_insert,
            turns=TURNS,
            divides=dialect.REJECTED,
        )
        self._insert_small = insert(max_batch=MAX_SMALL)
        self._insert_medium = insert(max_batch=MAX_MEDIUM)

    def encode(self, row: Row) -> bytes:
        """An item as clients get it."""
        return orjson.dumps(self._dump([row])[0])

    async def listing(self, request: Request) -> Response:
        ndjson = preferences.wants_ndjson(request)
        page_request, is_limited = self._page_request(request.scope["query_string"], ndjson)
        if self._owner:
            page_request = _of_owner(page_request, self.owner_of(request))
        page = await self.pages.read(page_request)
        total = []
        if preferences.wants_count(request):
            total = counted(await self.pages.count(page_request.selection))
        if not is_limited and page.after is not None:
            budget.take_part(request.scope, page.hold)
            stream = self.pages.stream(request.scope, page_request, page)
            return Stream(stream, [*described(ndjson), *total])
        if page.hold is not None:
            budget.share(request.scope, page.hold)
        elif len(page.body) > budget.LARGE_BYTES:
            # Others may hold this page, too.
            budget.take(request.scope, min(len(page.body), budget.PART_BYTES))
        link = [] if page.after is None else [_next_link(request.scope, page.after)]
        return Prepared(page.body, [*page.headers, *total, *link])

    async def create(self, request: Request) -> Response:
        body = await read_body(request)
        await _claim_write(request, body)
        new = self._read_new(body, first_header(request.scope, b"content-type"))
        if self._records:
            new = self.queries.created(new, self._creator_of(request))

        async def store(run: Run) -> bytes:
            return self.encode((await self.queries.insert([new], run))[0])

        try:
            if has_any(request.scope, _KEY):
                stored = await idempotency.store_once(request, body, store)
                item_id = orjson.loads(stored)["id"]
            else:
                row = await self._insert(new)
                stored, item_id = self.encode(row), row["id"]
        except dialect.CONFLICT:
            stored = b""
        if not stored:
            raise await self._conflict([new], self._sent, lambda place: ("body",))
        if len(stored) > budget.LARGE_BYTES:
            budget.settle(request.scope, len(stored))
        headers = self._described(request, item_id, stored)
        minimal = preferences.wants_minimal(request)
        if minimal:
            url = request.url_for(self.definition.name, **{self._id_name: item_id})
            headers.append((b"location", str(url).encode("latin-1")))
        return written(minimal, stored, headers)

    async def create_many(self, request: Request) -> Response:
        body = await read_body(request)
        await _claim_write(request, body)
        content_type = first_header(request.scope, b"content-type")
        if body and media_type(content_type) == NDJSON:
            values = await parse_ndjson(body, MAX_BATCH)
        else:
            values = parse(body, content_type)
        new = await load_all(self._load, values, MAX_BATCH, "body")
        if self._records:
            user = self._creator_of(request)
            new = [self.queries.created(values, user) for values in new]

        async def store(run: Run = fetch) -> bytes:
            return orjson.dumps(self._dump(await self.queries.insert(new, run)))

        try:
            if has_any(request.scope, _KEY):
                stored = await idempotency.store_once(request, body, store)
            else:
                stored = await store()
        except dialect.CONFLICT:
            stored = b""
        if not stored:
            raise await self._conflict(new, self._sent, lambda place: ("body", place))
        if len(stored) > budget.LARGE_BYTES:
            budget.settle(request.scope, len(stored))
        minimal = preferences.wants_minimal(request)
        if preferences.wants_ndjson(request):
            return written(minimal, encode_ndjson(orjson.loads(stored)), media_type=NDJSON)
        return written(minimal, stored)

    async def read(self, request: Request) -> Response:
        which = self._which(request)
        row = await self._get(which)
        if row is None:
            raise HTTPException(404)
        body = self.encode(row)
        if len(body) > budget.LARGE_BYTES:
            try:
                budget.take(request.scope, len(body))
            except HTTPException:
                # It is forgotten while it waits for room.
                size = len(body)
                del row, body
                await budget.claim(request.scope, size)
                row = await self._get(which)
                if row is None:
                    raise HTTPException(404) from None
                body = self.encode(row)
        return conditions.tagged(body)

    async def replace(self, request: Request) -> Response:
        return await self._write(request, self._read_new)

    async def change(self, request: Request) -> Response:
        return await self._write(request, self._read_changes)

    async def delete(self, request: Request) -> Response:
        which = owner, item_id = self._which(request)

        def delete(old: Row | None) -> Awaitable[bool]:
            return self.queries.delete(item_id, old, owner)

        try:
            await conditions.write(request, lambda: self._get(which), self._tag, delete)
        except dialect.CONFLICT:
            raise HTTPException(409, f"Other items refer to this {self.definition.name}") from None
        return Response(status_code=204)

    async def _write(
        self, request: Request, read: Callable[[bytes, str], Mapping[str, Any]]
    ) -> Response:
        which = owner, item_id = self._which(request)
        body = await read_body(request)
        await _claim_write(request, body)
        changes = read(body, first_header(request.scope, b"content-type"))

        def update(old: Row | None) -> Awaitable[Row | None]:
            return self.queries.update(item_id, changes, old, owner)

        try:
            row = await conditions.write(request, lambda: self._get(which), self._tag, update)
        except dialect.CONFLICT:
            row = None
        if row is None:
            old: Any = (await self.queries.get([item_id], owner)).get(item_id, {})
            if not old:
                raise HTTPException(404)
            new = self.queries.owned({**dict(old), **changes}, owner)
            raise await self._conflict([new], changes, lambda place: ("body",), item_id)
        changed = self.encode(row)
        if len(changed) > budget.LARGE_BYTES:
            budget.settle(request.scope, len(changed))
        minimal = preferences.wants_minimal(request)
        headers = self._described(request, item_id, changed)
        if minimal and request.method == "PUT":
            # The client would take its tag for that of what it sent (RFC 9110, section 9.3.4).
            headers = [field for field in headers if field[0] != b"etag"]
        return written(minimal, changed, headers)

    def _read_new(self, body: bytes, content_type: str) -> Mapping[str, Any]:
        """The values of an item that a client sends. Raises the errors of `parse`."""
        new = load_short(self._load_usual, body, content_type)
        if new is OTHER:
            new = load(self._load, parse(body, content_type), "body")
        values: Mapping[str, Any] = new
        return values

    def _read_changes(self, body: bytes, content_type: str) -> Mapping[str, Any]:
        changes: Mapping[str, Any] = load(self._load_changes, parse(body, content_type), "body")
        return changes

    def _insert(self, new: Mapping[str, Any]) -> Awaitable[Row]:
        """Stores an item together with others of its size, or a large one alone."""
        size = self.queries.size(new)
        if size <= SMALL:
            return self._insert_small(new)
        return self._insert_medium(new) if size <= LARGE else self._insert_alone(new)

    async def _insert_alone(self, new: Mapping[str, Any]) -> Row:
        self._observe_insert(1)
        return (await self.queries.insert([new]))[0]

    async def _get_all(self, which: list[tuple[int | None, int]]) -> Sequence[Row | None]:
        owner = which[0][0]
        found = await self.queries.get({item_id for _, item_id in which}, owner)
        return [found.get(item_id) for _, item_id in which]

    def _which(self, request: Request) -> tuple[int | None, int]:
        """The owner and the id of the item that the path names. HTTPException 404."""
        return self.owner_of(request), path_id(request, self._id_name)

    def owner_of(self, request: Request) -> int | None:
        """The user's id, if items have owners. HTTPException 401 without a user."""
        return None if self._owner is None else self._user_of(request)

    def _user_of(self, request: Request) -> int:
        if "user" not in request.scope:
            raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"})
        return int(request.scope["user"]["id"])

    def _creator_of(self, request: Request) -> int | None:
        """The user's id, if there is a user. HTTPException 401 if items have owners."""
        if self._owner is None and "user" not in request.scope:
            return None
        return self._user_of(request)

    async def _conflict(
        self,
        rows: Sequence[Mapping[str, Any]],
        sent: Collection[str],
        loc: Callable[[int], Loc],
        row_id: int | None = None,
    ) -> Exception:
        """The error to raise for values that break a constraint: 422 for what is not there."""
        faults = await self._constraints.find(rows, sent, row_id)
        errors = [
            describe(kind, (*loc(place), name), rows[place][name]) for place, name, kind in faults
        ]
        if any(kind == "not_found" for _, _, kind in faults):
            return InvalidInput(*errors)
        if errors:
            return Conflict(*errors)
        # It is a constraint of another kind, or nothing is in the way any more.
        return HTTPException(409, "The values break a constraint of the database")

    def _tag(self, row: Row) -> str:
        return conditions.etag(self.encode(row))

    def _described(self, request: Request, item_id: int, item: bytes) -> list[tuple[bytes, bytes]]:
        """The item's tag, and of what it is the tag (RFC 9110, section 8.7)."""
        path = f"{request.scope.get('root_path', '')}/{self._plural}/{item_id}"
        return [
            (b"etag", conditions.etag(item).encode()),
            (b"content-location", path.encode("latin-1")),
        ]

    def _read_first_page(self, query_string: bytes, ndjson: bool) -> tuple[PageRequest, bool]:
        """The page that a query string requests, and whether the query has a limit."""
        sent = read_query(query_string)
        query = load(self._listing_query.load, sent, "query")
        values = tuple(query[name] for name in self.definition.filters)
        order, after = self._order(sent, query) if self.definition.sorts else ((), query["after"])
        selection = Selection(query["order"] == "desc", values, query.get("q", ""), order=order)
        limit = query["limit"]
        return PageRequest(selection, after, limit or MAX_PAGE, ndjson), limit is not None

    def _order(
        self, sent: Mapping[str, str], query: Mapping[str, Any]
    ) -> tuple[Order, Place | None]:
        """The order that a query names, and behind which place it goes on."""
        order = query["sort"]
        others = [name for name in (("after", "order") if order else ("cursor",)) if name in sent]
        if others:
            invalid = (describe("extra_forbidden", ("query", name), sent[name]) for name in others)
            raise InvalidInput(*invalid)
        if "cursor" not in sent:
            return order, query["after"]
        columns = [self.definition.table.c[name] for name, _ in order]
        try:
            return order, read_cursor(query["cursor"], columns)
        except ValueError:
            at = ("query", "cursor")
            raise InvalidInput(describe("cursor_invalid", at, sent["cursor"])) from None

    def _page_request(self, query_string: bytes, ndjson: bool) -> tuple[PageRequest, bool]:
        query, after = _split_after(query_string)
        # Long query strings would fill the cache's memory.
        read = self._first_page if len(query_string) < 200 else self._read_first_page
        first, is_limited = read(query, ndjson)
        if after is None:
            return first, is_limited
        if first.selection.order:
            return read(query_string, ndjson)
        return PageRequest(first.selection, after, first.limit, ndjson), is_limited


def _of_owner(request: PageRequest, owner: int | None) -> PageRequest:
    """The page of an owner. `_replace` would take three times as long."""
    (descending, values, q, _, order), after, limit, ndjson = request
    return PageRequest(Selection(descending, values, q, owner, order), after, limit, ndjson)


def _split_after(query: bytes) -> tuple[bytes, int | None]:
    """A query without `after`, and its value; the same query if another parameter is the last.

    Pages that follow each other differ in it alone.
    """
    others, found, after = query.rpartition(b"after=")
    if found and after.isdigit() and len(after) < 16 and _names_no_after(others):
        return others[:-1], int(after)
    return query, None


def _names_no_after(others: bytes) -> bool:
    """Whether these parts of a query string are complete, and none of them is named `after`."""
    return others[-1:] in (b"", b"&") and b"after" not in others and b"%" not in others


async def _claim_write(request: Request, body: bytes) -> None:
    if len(body) > SHORT_BYTES:
        values = count_values(body, first_header(request.scope, b"content-type"))
        await budget.claim_write(request.scope, body, values)


def _next_link(scope: Scope, after: Place) -> tuple[bytes, bytes]:
    query = scope["query_string"]
    if isinstance(after, int):
        return next_link(scope, _split_after(query)[0], "after", after)
    return next_link(scope, query, "cursor", write_cursor(after))
