"""What the tests of users share."""

from collections.abc import Iterator

import pytest

from tests.support.processes import Run, new_process


@pytest.fixture(scope="module")
def process(shared_database_url: str) -> Iterator[Run]:
    """Runs a function with the database open, in a process that was started for its kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", shared_database_url)
        with new_process() as run:
            yield run
