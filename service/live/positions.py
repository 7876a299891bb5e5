"""Where a follower is in the changes, and the id of an event that says so.

The order in which transactions begin is not the order in which they commit, so no number of a
change says what was committed before it. A snapshot does: of two of them, one has seen all that the
other has. So a follower goes from snapshot to snapshot. What only the later one sees comes in the
order in which it was recorded. That is right for each row, as a transaction that changes a row
again has waited for the end of the one before.
"""

import re
from itertools import pairwise
from typing import NamedTuple

# A snapshot names the transactions that were open: up to some two thousand in this length, which
# proxies take in a header.
MAX_LENGTH = 8000


class Snapshot(NamedTuple):
    """What is seen: transactions with numbers below `end`, except those that were `open`.

    The numbers ascend.
    """

    end: int
    open: tuple[int, ...] = ()

    def __str__(self) -> str:
        # The numbers of open ones are near the end.
        distances = (self.end - number for number in self.open)
        return ".".join(f"{number:x}" for number in (self.end, *distances))

    def misses(self, swept: int, now: "Snapshot") -> bool:
        """Whether changes up to a transaction were deleted that this doesn't see, and `now` does.

        Nothing is deleted of a transaction that is still open.
        """
        return swept >= self.end or any(
            number <= swept and number not in now.open for number in self.open
        )


MAX_NUMBER = 2**63 - 1
# The number of the next change is asked for.
MAX_SEQ = MAX_NUMBER - 1

# All that is committed.
ALL = Snapshot(MAX_NUMBER)


class Position(NamedTuple):
    """All that `seen` sees, and of what `until` sees the changes up to number `seq`.

    `seq` and `at` name the last change that was told, or the newest one at the start; 0 for none.
    """

    seen: Snapshot
    until: Snapshot | None
    seq: int
    # Microseconds since the epoch.
    at: int


_SNAPSHOT = r"([0-9a-f]{1,16}(?:\.[0-9a-f]{1,16})*)"
_NUMBER = "([0-9a-f]{1,16})"
_ID = re.compile(f"([0-9a-f]{{32}})-{_SNAPSHOT}-{_SNAPSHOT}?-{_NUMBER}-{_NUMBER}")


def write_start(life: str, seen: Snapshot, until: Snapshot | None) -> str:
    """The beginning of the ids of all changes between two snapshots."""
    return f"{life}-{seen}-{'' if until is None else until}-"


def write_id(life: str, position: Position) -> str:
    """The id of an event: printable ASCII without spaces."""
    start = write_start(life, position.seen, position.until)
    return f"{start}{position.seq:x}-{position.at:x}"


def read_id(text: str) -> tuple[str, Position]:
    """The life of the changes and the position that an id names. ValueError if it is none."""
    found = _ID.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if found is None:
        raise ValueError("is no id of an event")
    life, seen, until, seq, at = found.groups()
    return life, Position(
        _read(seen), None if until is None else _read(until), _number(seq, MAX_SEQ), _number(at)
    )


def read_snapshot(text: str) -> Snapshot:
    """A snapshot as PostgreSQL writes it: begin:end:open,open."""
    _, end, still_open = text.split(":")
    return Snapshot(int(end), tuple(int(one) for one in still_open.split(",") if one))


def _number(text: str, most: int = MAX_NUMBER) -> int:
    number = int(text, 16)
    if number > most:
        raise ValueError("is no id of an event")
    return number


def _read(text: str) -> Snapshot:
    end, *distances = (_number(one) for one in text.split("."))
    numbers = (-1, *(end - one for one in distances), end)
    if any(first >= second for first, second in pairwise(numbers)):
        raise ValueError("is no id of an event")
    return Snapshot(end, numbers[1:-1])
