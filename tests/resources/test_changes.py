"""The changes of a resource whose values have another form in JSON."""

import pytest

from service.live.feed import Window
from service.live.positions import Position, Snapshot
from service.live.store import Change
from service.resources.changes import Changes, Wanted
from tests.support import shop

LIFE = "a" * 32
BEFORE, AFTER = (Position(Snapshot(end), None, 0, 0) for end in (7, 8))
ROW = {"id": 1, "name": "a", "archived": 0, "rank": 1, "created_at": 0, "updated_at": 0}


def test_what_can_not_be_read_is_left_out_for_nobody() -> None:
    """Each follower of a change that can't be read gets the same error, and none a part of them."""
    changes = Changes(shop.REPAIRS, lambda request: None)
    dues = ["2026-01-01", "garbage", "2026-01-03"]
    told = [Change(seq, 1, 1, None, ROW | {"due": due}) for seq, due in enumerate(dues)]
    window = Window(BEFORE, AFTER, told, 1)
    for _ in range(3):
        with pytest.raises(ValueError, match="garbage"):
            changes.render(LIFE, window, Wanted((None,) * len(shop.REPAIRS.filters), None))
