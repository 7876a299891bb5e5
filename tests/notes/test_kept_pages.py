"""First pages are encoded again only if their notes have changed."""

from dataclasses import replace

import pytest

from service.notes.resource import NOTES, usual
from service.resources.pages import KEPT_PAGES, Page, PageRequest
from service.resources.queries import SHARED_LENGTH, Selection
from tests.support.databases import NewDatabase, fill
from tests.support.processes import new_process

FIRST = PageRequest(Selection(), None, SHARED_LENGTH + 1, False)


async def read_and_change() -> list[Page]:
    """A page, read twice each time: as it is, with a changed note, with more notes behind it."""
    pages = [await usual.items.pages.read(FIRST) for _ in range(2)]
    await usual.items.queries.update(3, {"completed": False})
    pages += [await usual.items.pages.read(FIRST) for _ in range(2)]
    await usual.items.queries.insert([NOTES.new.load({"text": "new", "completed": True})])
    return pages + [await usual.items.pages.read(FIRST) for _ in range(2)]


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


async def read_others() -> list[Page]:
    """A page, read twice; others that are as many as are kept; the page again."""
    pages = [await usual.items.pages.read(FIRST) for _ in range(2)]
    for number in range(KEPT_PAGES):
        await usual.items.pages.read(FIRST._replace(limit=FIRST.limit + 1 + number))
    pages.append(await usual.items.pages.read(FIRST))
    # What a page holds of the budget can't travel to another process.
    alone = {id(page): replace(page, hold=None) for page in pages}
    return [alone[id(page)] for page in pages]


@pytest.mark.parametrize(
    ("letters", "kept"), [(100, [True, True, False]), (9_000, [True, False, False])]
)
def test_few_pages_are_kept_and_no_large_ones(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch, letters: int, kept: list[bool]
) -> None:
    """The pages that were read last take the places of others, and large pages take none."""
    url = new_database("sqlite")
    fill(url, FIRST.limit, "a" * letters)
    monkeypatch.setenv("DATABASE_URL", url)
    with new_process() as run:
        pages = run(read_others)
    assert [page is pages[0] for page in pages] == kept
