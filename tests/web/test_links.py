"""Links to next pages are made of the URL as Starlette reads it."""

import re
from urllib.parse import quote, unquote_plus

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import URL
from starlette.types import Scope

from service.resources.items import _next_link

parts = st.sampled_from(
    ["after=3", "after=007", "after=x", "%61fter=3", "limit=2", "q=<a b>", "", "after", "a=after=1"]
)
queries = st.lists(parts, max_size=4).map("&".join) | st.just("q=" + "x" * 600)
texts = st.text(st.characters(codec="latin-1"), max_size=5)
hosts = st.sampled_from(["h", "h:80", "[::1]:1", "h:port", "", "b\xe4d"]) | texts
scopes = st.fixed_dictionaries(
    {
        "scheme": st.sampled_from(["http", "https"]),
        "server": st.sampled_from([("s", 80), ("s", 443), ["s", 1], ("::1", 80), None]),
        "path": texts.map("/notes".__add__),
        "query_string": queries.map(str.encode),
        "headers": st.lists(
            st.tuples(st.just(b"host"), hosts.map(lambda host: host.encode("latin-1"))), max_size=2
        ),
    }
)


def expected(scope: Scope, name: str, value: str) -> str:
    url, _, query = str(URL(scope=scope)).partition("?")
    kept = [item for item in query.split("&") if unquote_plus(item.partition("=")[0]) != name]
    query = "&".join([*filter(None, kept), f"{name}={value}"])
    escaped = re.sub(r'[<>"\\^`{|}\s]', lambda found: quote(found[0]), query)
    return f'<{url}?{escaped}>; rel="next"'


@settings(max_examples=500)
@given(scope=scopes)
def test_a_link_is_the_url_with_another_parameter(scope: Scope) -> None:
    """All that the client sent stays as it was, on any URL, also when the link is made again."""
    wanted = b"link", expected(scope, "after", "12").encode("latin-1")
    assert [_next_link(scope, 12) for _ in range(2)] == [wanted] * 2
