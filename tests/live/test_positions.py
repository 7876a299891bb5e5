"""The id of an event says where a follower is."""

import string

from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.live.positions import Position, Snapshot, read_id, write_id

LIFE = "0123456789abcdef" * 2
NUMBERS = st.integers(0, 2**63 - 1)
ALPHABET = string.hexdigits + ".-"


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    numbers = draw(st.sets(NUMBERS | st.integers(0, 20), min_size=1, max_size=4))
    *still_open, end = sorted(numbers)
    return Snapshot(end, tuple(still_open))


SEQS = st.integers(0, 2**63 - 2)
positions = st.builds(Position, snapshots(), st.none() | snapshots(), SEQS, NUMBERS)


@settings(max_examples=60)
@given(positions)
def test_an_id_is_read_as_it_was_written(position: Position) -> None:
    """Whatever the place, its id names it, in characters that headers and URLs take."""
    name = write_id(LIFE, position)
    assert read_id(name) == (LIFE, position)
    assert set(name) <= set(ALPHABET)


def test_an_id_names_many_transactions() -> None:
    """Nine hundred open transactions, some of them older than others, have room in an id."""
    seen, until = (
        Snapshot(end, tuple(range(end - 4000, end - 400, 4))) for end in (2**40, 2**40 + 9000)
    )
    position = Position(seen, until, 2**40, 2**51)
    assert read_id(write_id(LIFE, position)) == (LIFE, position)


def accepted(text: str) -> tuple[str, Position] | None:
    """What an id names; None if it is refused."""
    try:
        return read_id(text)
    except ValueError:
        return None


@settings(max_examples=150)
@given(
    positions.map(lambda position: write_id(LIFE, position)),
    st.integers(0, 200),
    st.sampled_from(["", "0", "f", "G", "-", ".", "é", "٣", " ", "\n", "0" * 16]),
    st.integers(0, 2),
)
@example(write_id(LIFE, Position(Snapshot(5), None, 0, 0)), 33, "8" + "0" * 15, 1)
@example(write_id(LIFE, Position(Snapshot(5), None, 2**63 - 1, 0)), 0, "0", 1)
def test_what_is_no_id_is_refused(name: str, place: int, other: str, instead_of: int) -> None:
    """An id with a fault is refused, or names a place that could be."""
    text = name[:place] + other + name[place + instead_of :]
    found = accepted(text)
    if found is None:
        return
    life, (seen, until, seq, at) = found
    assert set(text) <= set(ALPHABET)
    assert len(life) == 32
    for snapshot in (seen, until):
        if snapshot is not None:
            numbers = [-1, *snapshot.open, snapshot.end, 2**63]
            assert numbers == sorted(set(numbers))
    assert 0 <= seq < 2**63 - 1
    assert 0 <= at < 2**63
    assert read_id(write_id(*found)) == found


@settings(max_examples=50)
@given(st.text() | st.text(ALPHABET, max_size=100))
def test_garbage_is_refused(text: str) -> None:
    """No text of another kind is taken for an id."""
    assert accepted(text) is None
