"""Documents of JSON that tests make up: any value, and what is nearly a note."""

import json

from hypothesis import strategies as st

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.0**63, 1e308, 2**63, -(2**63), 2**63 - 1])
    | st.text(st.characters())
    | st.sampled_from(["true", "False", "YES", "n", "oN", "off", "1", "0", "maybe", " 1", "\u212a"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
odd_text = st.text(st.sampled_from("\0\ud800\udc00a"), max_size=3)
notes = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text() | odd_text | values,
        "completed": st.booleans() | values,
        "id": values,
    },
)
valid = st.fixed_dictionaries({"text": st.text(), "completed": st.booleans()})
documents = st.builds(
    lambda value, ascii: json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass"),  # noqa: A006
    valid | notes | values,
    st.booleans(),
)
