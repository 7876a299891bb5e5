"""Notes that tests make up, and ways to find notes."""

import re
from collections.abc import Iterator
from typing import Any

import httpx2
from hypothesis import strategies as st

from service.notes.resource import NOTES

# Surrogates, NUL and NaN are answered better than by FastAPI, and have tests of their own.
plain_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain_text
    | st.sampled_from(["true", "OFF", "y", "maybe", " 1", 1.0, 0.0, 2**63, 1e308])
)
# Any JSON.
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_text, inner, max_size=2),
    max_leaves=4,
)

# The fields of a note that the example doesn't have.
MORE = [name for name in NOTES.shape.dump_fields if name not in ("id", "text", "completed")]


def known(answer: Any) -> Any:
    """A note, or notes, as clients of the example know them. Anything else stays as it is."""
    if isinstance(answer, list):
        return [known(note) for note in answer]
    if isinstance(answer, dict):
        return {name: value for name, value in answer.items() if name not in MORE}
    return answer


def last_id(client: httpx2.Client) -> int:
    """The greatest id, or 0 if there is no note."""
    notes = client.get("/notes/?order=desc&limit=1").json()
    return int(notes[0]["id"]) if notes else 0


def next_url(answer: httpx2.Response) -> str | None:
    """The URL of the next page. AssertionError for a malformed `Link`."""
    if "link" not in answer.headers:
        return None
    link = re.fullmatch('<([^<>"\\s]+)>; rel="next"', answer.headers["link"])
    assert link is not None, answer.headers["link"]
    return link[1]


def follow(service: httpx2.Client, url: str) -> Iterator[httpx2.Response]:
    """The answers from this page to the last."""
    following: str | None = url
    visited = set()
    while following is not None:
        assert following not in visited, "a walk in circles"
        visited.add(following)
        answer = service.get(following)
        assert answer.status_code == 200
        yield answer
        following = next_url(answer)
