"""Pages of a resource, and listings in many pages. Concurrent callers share an encoded page.

The database is asked for each page. A first page that is read alone is encoded again only if its
rows have changed.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import orjson
from starlette.types import Scope

from service import metrics
from service.database.coalescing import TURNS, coalesce
from service.resources.definition import Definition
from service.resources.queries import MAX_SHARED, Place, Queries, Selection, place_of
from service.schemas.compiled import compile_dump
from service.tables import Row
from service.web import budget, conditions
from service.web.responses import NDJSON, encode_ndjson

# The number of encoded pages that are kept, and the most bytes of each. Their rows may take four
# times as much: a character outside the Basic Multilingual Plane makes all of its text so wide.
KEPT_PAGES = 8
MAX_KEPT_BYTES = 250_000

VARY = (b"vary", b"Accept, Accept-Encoding, Prefer")


def described(ndjson: bool) -> list[tuple[bytes, bytes]]:
    """The headers of every listing of a format."""
    return [(b"content-type", NDJSON.encode() if ndjson else b"application/json"), VARY]


class PageRequest(NamedTuple):
    """All that identifies a page. `ndjson` means NDJSON instead of JSON."""

    selection: Selection
    after: Place | None
    limit: int
    ndjson: bool


@dataclass(frozen=True)
class Page:
    """Encoded items, and the place of the last one if more follow."""

    request: PageRequest
    body: bytes
    after: Place | None
    # What a page that is too large to be kept takes of the budget.
    hold: budget.Hold | None = None

    @cached_property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What all who share the page are told; its tag is no other request's or page's.

        Made once for them, and not for the pages of a stream.
        """
        return [
            (b"content-length", b"%d" % len(self.body)),
            *described(self.request.ndjson),
            (b"etag", conditions.etag(self.body, self.request, self.after).encode()),
        ]


def _held(page: Page, hold: budget.Hold | None = None) -> Page | None:
    """The page with what it takes of the budget; None if that is not there."""
    size = len(page.body)
    if size <= MAX_KEPT_BYTES:
        return page
    hold = hold or budget.try_hold(size)
    if hold is None:
        return None
    hold.settle(size + budget.PART_BYTES)
    return replace(page, hold=hold)


class Pages:
    """The pages of a definition's rows."""

    def __init__(self, definition: Definition, queries: Queries) -> None:
        self._queries = queries
        self._dump = compile_dump(definition.shape)
        # The last pages that were encoded, with their rows.
        self._kept: dict[PageRequest, tuple[Sequence[Row], Page]] = {}
        observe = metrics.batch(f"list_{definition.plural}")
        same: dict[str, Any] = {
            "max_batch": 10_000,
            "key": lambda request: request,
            # With more callers the page is made less often.
            "turns": TURNS,
        }
        self._read_same: Callable[[PageRequest], Awaitable[Page | None]] = coalesce(
            self._read_short, observe=observe, **same
        )
        self._search: Callable[[PageRequest], Awaitable[Page]] = coalesce(
            self._read_long, observe=observe, **same
        )
        # Those who come here were observed before.
        self._read_large: Callable[[PageRequest], Awaitable[Page]] = coalesce(
            self._read_long, **same
        )
        self._read_shared = coalesce(
            self._read_pages,
            max_batch=MAX_SHARED,
            key=lambda request: request.selection,
            count=lambda request: request,
            observe=observe,
        )
        self._count = coalesce(
            self._count_all,
            max_batch=10_000,
            key=lambda selection: selection._replace(descending=False, order=()),
            observe=metrics.batch(f"count_{definition.plural}"),
        )

    async def read(self, request: PageRequest) -> Page:
        """Reads a page, together with callers who want the same one, or another short one."""
        if self._queries.searches(request.selection):
            return await self._search(request)
        page = None
        if self._queries.is_shared(request.selection, request.limit):
            page = await self._read_shared(request)
        if page is None:
            page = await self._read_same(request)
        return await self._read_large(request) if page is None else page

    async def count(self, selection: Selection) -> int:
        """The number of a selection's items."""
        return await self._count(selection)

    async def stream(
        self, scope: Scope, request: PageRequest, page: Page
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """A whole listing, from its first page. Yields views, because copies may be large."""
        yield page.body if request.ndjson else memoryview(page.body)[:-1]
        while (after := page.after) is not None:
            # A page must not wait for room while this one holds some.
            del page
            with budget.waiting(scope):
                page = await self.read(request._replace(after=after))
            if request.ndjson:
                yield page.body
            elif page.body != b"[]":
                yield b","
                yield memoryview(page.body)[1:-1]
        if not request.ndjson:
            yield b"]"

    async def _read_short(self, requests: list[PageRequest]) -> list[Page | None]:
        """None for a page that is too large, for these bounds or for the budget."""
        found = await self._queries.list_short(*requests[0][:3])
        page = None if found is None else _held(self._keep(requests[0], *found))
        return [page] * len(requests)

    async def _read_long(self, requests: list[PageRequest]) -> list[Page]:
        request = requests[0]
        most = self._queries.most_bytes(request.limit)
        hold = budget.try_hold(most)
        if hold is None and self._queries.searches(request.selection):
            # Most searches find little, so they don't wait.
            (short,) = await self._read_short([request])
            if short is not None:
                return [short] * len(requests)
        hold = hold or await budget.hold(most)
        page = _held(self._keep(request, *await self._queries.list_page(*request[:3])), hold)
        assert page is not None
        if page.hold is not None:
            # Its tag takes long.
            await asyncio.to_thread(getattr, page, "headers")
        return [page] * len(requests)

    async def _read_pages(self, requests: list[PageRequest]) -> list[Page | None]:
        wanted = list(dict.fromkeys(requests))
        found = await self._queries.list_pages(
            wanted[0].selection, [(request.after, request.limit) for request in wanted]
        )
        pages = {
            request: self._encode(request, *page)
            for request, page in zip(wanted, found, strict=True)
            if page is not None
        }
        return [pages.get(request) for request in requests]

    async def _count_all(self, selections: list[Selection]) -> list[int]:
        total = await self._queries.count(selections[0])
        return [total] * len(selections)

    def _keep(self, request: PageRequest, rows: Sequence[Row], more: bool) -> Page:
        """A page of rows: encoded, or kept from before if its rows are the same.

        To compare the rows takes from an eighth (PostgreSQL) to a half (SQLite) of the time to
        encode them. First pages alone are kept: they are polled, and the pages of a stream would
        replace them.
        """
        old_rows, page = self._kept.pop(request, (None, None))
        if page is None or rows != old_rows or more != (page.after is not None):
            page = self._encode(request, rows, more)
        if request.after is None and len(page.body) <= MAX_KEPT_BYTES:
            self._kept[request] = rows, page
            if len(self._kept) > KEPT_PAGES:
                del self._kept[next(iter(self._kept))]
        return page

    def _encode(self, request: PageRequest, rows: Sequence[Row], more: bool) -> Page:
        found = self._dump(rows)
        body = encode_ndjson(found) if request.ndjson else orjson.dumps(found)
        return Page(request, body, place_of(rows[-1], request.selection) if more else None)
