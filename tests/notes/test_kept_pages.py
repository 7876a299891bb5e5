"""First pages are encoded again only if their notes have changed."""

import pytest

from service.notes import listing, queries
from service.notes.listing import Page, PageRequest
from service.notes.queries import SHARED_LENGTH, Selection
from tests.support.databases import fill
from tests.support.processes import new_process

FIRST = PageRequest(Selection(), None, SHARED_LENGTH + 1, False)


async def read_and_change() -> list[Page]:
    """A page, read twice each time: as it is, with a changed note, with more notes behind it."""
    pages = [await listing.read_page(FIRST) for _ in range(2)]
    await queries.update_note(3, {"completed": False})
    pages += [await listing.read_page(FIRST) for _ in range(2)]
    await queries.insert_notes([{"text": "new", "completed": True}])
    return pages + [await listing.read_page(FIRST) for _ in range(2)]


def test_a_page_is_kept_while_it_is_the_same(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poller gets the page that was encoded before, until a note or the link changes."""
    fill(database_url, FIRST.limit)
    monkeypatch.setenv("DATABASE_URL", database_url)
    with new_process() as run:
        pages = run(read_and_change)
    # Objects that were the same still are, on their way from the other process.
    assert [page is pages[0] for page in pages] == [True, True, False, False, False, False]
    assert [page is pages[2] for page in pages] == [False, False, True, True, False, False]
    assert [page is pages[4] for page in pages] == [False, False, False, False, True, True]
