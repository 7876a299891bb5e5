"""What holds for the usual operations of every resource. Each law is a function of a client.

It raises an AssertionError if it doesn't hold for a resource that has no items.
The data is made from the schemas of the service's own OpenAPI document. Items are compared in what
is known of them, so a resource may have more fields than clients sent.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any, NamedTuple

import httpx2

from tests.support import databases
from tests.support.notes import follow

LINES = "application/x-ndjson"
# Parameters of each listing, which are no filters.
GENERAL = {"limit", "after", "order", "q"}
FieldSchema = Mapping[str, Any]


def kind_of(schema: FieldSchema) -> str:
    """What kind of values a field has: an enum, a format, or a type of JSON."""
    if "enum" in schema:
        return "enum"
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return str(schema.get("format", kinds[0]))


def _integer(schema: FieldSchema, number: int) -> int:
    least, greatest = schema.get("minimum", 0), schema.get("maximum", number)
    first = max(least, min(0, greatest))
    return int(first + number % (greatest - first + 1))


def _word(schema: FieldSchema, number: int) -> Any:
    words = [word for word in schema["enum"] if word is not None]
    return words[number % len(words)]


def _day(number: int) -> str:
    return str(date(2026, 2, 27) + timedelta(number))


# The values of each kind, for an item with a number.
VALUES: Mapping[str, Callable[[FieldSchema, int], Any]] = {
    "string": lambda schema, number: f"Größe {number}"[-schema.get("maxLength", 100) :],
    "enum": _word,
    "integer": _integer,
    "boolean": lambda _, number: number % 2 == 0,
    "date": lambda _, number: _day(number),
    "date-time": lambda _, number: f"{_day(number)}T12:00:00Z",
    "array": lambda schema, number: [value_of(schema["items"], number)],
}
# A value that no field of the kind takes.
WRONG: Mapping[str, Any] = {
    "string": 7,
    "enum": "none of them",
    "integer": "x",
    "boolean": "perhaps",
    "date": "2026-02-30",
    "date-time": "2026-02-30T12:00:00Z",
    "array": "x",
}


def value_of(schema: FieldSchema, number: int) -> Any:
    return VALUES[kind_of(schema)](schema, number)


class Usual(NamedTuple):
    """A resource with all usual operations, and the schemas of the fields that clients send."""

    path: str
    fields: Mapping[str, FieldSchema]
    required: set[str]
    filters: set[str]
    is_searched: bool
    # The names of all fields that clients get.
    shown: Sequence[str]

    def item(self, number: int) -> dict[str, Any]:
        """The values for an item. One that refers to another resource refers to nothing."""
        return {
            name: None if name.endswith("_id") else value_of(schema, number)
            for name, schema in self.fields.items()
        }

    def known(self, item: dict[str, Any]) -> dict[str, Any]:
        """What of an item doesn't depend on the time."""
        return {name: value for name, value in item.items() if name in {"id", *self.fields}}


Law = Callable[[httpx2.Client, Usual], None]


def find(document: dict[str, Any]) -> list[Usual]:
    """The resources in a document that have all usual operations."""
    schemas = document["components"]["schemas"]
    found = []
    for path, item in document["paths"].items():
        if not {f"{path}batch"} <= document["paths"].keys():
            continue
        body = item["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = schemas[body["$ref"].rpartition("/")[2]]
        queries = {one["name"] for one in item["get"]["parameters"] if one["in"] == "query"}
        fields = schema["properties"]
        required = set(schema.get("required", ()))
        answer = item["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        shown = list(schemas[answer["$ref"].rpartition("/")[2]]["properties"])
        filters = (queries - GENERAL) & fields.keys()
        found.append(Usual(path, fields, required, filters, "q" in queries, shown))
    return found


def empty(database_url: str, usual: Usual) -> None:
    """Deletes all items beside the service, which would take long for a thousand."""
    databases.execute(database_url, f"DELETE FROM {usual.path.strip('/')}")


def create(client: httpx2.Client, usual: Usual, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Stores items with so many numbers. Their texts are unique, and other values are not."""
    numbers = range(first, first + count)
    answer = client.post(f"{usual.path}batch", json=[usual.item(number) for number in numbers])
    assert answer.status_code == 200
    return list(answer.json())


def walk(client: httpx2.Client, url: str) -> Iterator[dict[str, Any]]:
    for page in follow(client, url):
        yield from page.json()


def created_items_are_read_back(client: httpx2.Client, usual: Usual) -> None:
    """Created items have rising ids, and all of their values, in the order of the schema."""
    created = [client.post(usual.path, json=usual.item(number)) for number in range(3)]
    items = [answer.json() for answer in created]
    assert [answer.status_code for answer in created] == [200] * 3
    for number, item in enumerate(items):
        assert list(item) == usual.shown
        assert usual.known(item) == {**usual.item(number), "id": item["id"]}
        assert client.get(f"{usual.path}{item['id']}").json() == item
    assert sorted(item["id"] for item in items) == [item["id"] for item in items]
    assert client.get(usual.path).json() == items


def optional_fields_have_defaults(client: httpx2.Client, usual: Usual) -> None:
    """An item without its optional fields is stored, with the same defaults each time."""
    defaults = []
    for number in (1, 2):
        given = {name: usual.item(number)[name] for name in usual.required}
        item = client.post(usual.path, json=given).json()
        assert list(item) == usual.shown
        assert {name: item[name] for name in given} == given
        defaults.append({name: item[name] for name in usual.fields if name not in given})
    assert defaults[0] == defaults[1]


def pages_are_walked(client: httpx2.Client, usual: Usual) -> None:
    """The pages of either order have every item once."""
    items = create(client, usual, 7)
    for limit in (1, 3, 7, 8):
        assert list(walk(client, f"{usual.path}?limit={limit}")) == items
        assert list(walk(client, f"{usual.path}?order=desc&limit={limit}")) == items[::-1]
    assert client.get(f"{usual.path}?after={items[4]['id']}").json() == items[5:]


def long_listings_are_whole(client: httpx2.Client, usual: Usual) -> None:
    """A listing without a limit has more items than a page, as JSON and as lines."""
    items = create(client, usual, 1000) + create(client, usual, 2, first=1000)
    assert client.get(usual.path).json() == items
    lines = client.get(usual.path, headers={"accept": LINES}).text.splitlines()
    assert [json.loads(line) for line in lines] == items


def filters_select(client: httpx2.Client, usual: Usual) -> None:
    """Each filter selects the items with its value, and so do all filters together."""
    items = create(client, usual, 12)
    # Nothing is equal to null.
    filters = {name for name in usual.filters if items[0][name] is not None}
    for name in filters:
        for item in items[:3]:
            wanted = [one for one in items if one[name] == item[name]]
            assert client.get(usual.path, params={name: item[name]}).json() == wanted
    values = {name: items[1][name] for name in filters}
    wanted = [item for item in items if values.items() <= item.items()]
    first_page = httpx2.URL(usual.path, params={**values, "limit": 1})
    assert list(walk(client, str(first_page))) == wanted


def searches_find(client: httpx2.Client, usual: Usual) -> None:
    """A search finds items in upper or lower case, and counts them."""
    if not usual.is_searched:
        return
    items = create(client, usual, 12)
    answer = client.get(usual.path, params={"q": "GRÖSSE 1"}, headers={"prefer": "count=exact"})
    assert answer.json() == [items[1], items[10], items[11]]
    assert answer.headers["x-total-count"] == "3"
    assert client.get(usual.path, params={"q": "none of them"}).json() == []


def batches_are_stored_whole_or_not(client: httpx2.Client, usual: Usual) -> None:
    """One bad item of a batch keeps all of them out; the answer tells of each fault."""
    name, schema = next(iter(usual.fields.items()))
    batch = [usual.item(0), {**usual.item(1), name: WRONG[kind_of(schema)]}]
    answer = client.post(f"{usual.path}batch", json=batch)
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["detail"]] == [["body", 1, name]]
    assert client.get(usual.path).json() == []
    lines = "\n".join(json.dumps(usual.item(number)) for number in range(3))
    answer = client.post(f"{usual.path}batch", content=lines, headers={"content-type": LINES})
    assert answer.status_code == 200
    assert client.get(usual.path).json() == answer.json()


def changes_keep_the_rest(client: httpx2.Client, usual: Usual) -> None:
    """PATCH changes the fields that it names, and PUT all of them."""
    (item,) = create(client, usual, 1)
    url = f"{usual.path}{item['id']}"
    for name, value in usual.item(3).items():
        changed = client.patch(url, json={name: value}).json()
        item[name] = value
        assert usual.known(changed) == usual.known(item)
        assert client.get(url).json() == changed
    assert client.patch(url, json={}).json() == changed
    replaced = client.put(url, json=usual.item(4)).json()
    assert usual.known(replaced) == {"id": item["id"], **usual.item(4)}


def conditions_guard_writes(client: httpx2.Client, usual: Usual) -> None:
    """A write under a condition happens only while the item is as its tag says."""
    (item,) = create(client, usual, 1)
    url = f"{usual.path}{item['id']}"
    tag = client.get(url).headers["etag"]
    assert client.get(url, headers={"if-none-match": tag}).status_code == 304
    changed = client.put(url, json=usual.item(1), headers={"if-match": tag})
    assert (changed.status_code, changed.headers["etag"] == tag) == (200, False)
    assert client.put(url, json=usual.item(2), headers={"if-match": tag}).status_code == 412
    assert client.patch(url, json={}, headers={"if-match": tag}).status_code == 412
    assert client.delete(url, headers={"if-match": tag}).status_code == 412
    assert client.get(url).json() == changed.json()
    assert client.delete(url, headers={"if-match": changed.headers["etag"]}).status_code == 204
    listing = client.get(usual.path)
    again = client.get(usual.path, headers={"if-none-match": listing.headers["etag"]})
    assert again.status_code == 304


def deleted_items_are_gone(client: httpx2.Client, usual: Usual) -> None:
    """A deleted item is a 404 for every method, and its id is never given again."""
    (item,) = create(client, usual, 1)
    url = f"{usual.path}{item['id']}"
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == client.delete(url).status_code == 404
    assert client.put(url, json=usual.item(1)).status_code == 404
    assert client.patch(url, json={}).status_code == 404
    assert client.get(f"{usual.path}x").status_code == 404
    assert client.post(usual.path, json=usual.item(1)).json()["id"] > item["id"]


def retries_store_once(client: httpx2.Client, usual: Usual) -> None:
    """A key stores once, gives the first answer again, and is refused for another body."""
    for url, body in (
        (usual.path, usual.item(1)),
        (f"{usual.path}batch", [usual.item(2), usual.item(3)]),
    ):
        key = {"idempotency-key": secrets.token_hex()}
        first, second = (client.post(url, json=body, headers=key) for _ in range(2))
        assert (first.status_code, second.content) == (200, first.content)
        other = client.post(url, json=[], headers=key)
        assert other.status_code == 422
    assert len(client.get(usual.path).json()) == 3


def bad_values_are_told(client: httpx2.Client, usual: Usual) -> None:
    """Each field says what it can't be, each required one that it is missing."""
    (item,) = create(client, usual, 1)
    url = f"{usual.path}{item['id']}"
    for name, schema in usual.fields.items():
        wrong = WRONG[kind_of(schema)]
        values = {**usual.item(0), name: wrong}
        answers = [client.post(usual.path, json=values), client.put(url, json=values)]
        for answer in [*answers, client.patch(url, json={name: wrong})]:
            assert answer.status_code == 422
            assert [error["loc"] for error in answer.json()["detail"]] == [["body", name]]
    missing = client.post(usual.path, json={}).json()["detail"]
    assert {error["loc"][1] for error in missing} == usual.required
    assert {error["type"] for error in missing} == {"missing"}
    assert client.get(f"{usual.path}?limit=0&after=x").status_code == 422
    assert client.get(url).json() == item


def clients_may_want_no_answer(client: httpx2.Client, usual: Usual) -> None:
    """Prefer: return=minimal makes 204 of each write; Location leads to what is new."""
    minimal = {"prefer": "return=minimal"}
    created = client.post(usual.path, json=usual.item(0), headers=minimal)
    assert (created.status_code, created.content) == (204, b"")
    url = created.headers["location"]
    assert client.get(url).json().items() >= usual.item(0).items()
    for method in ("PUT", "PATCH"):
        answer = client.request(method, url, json=usual.item(1), headers=minimal)
        assert (answer.status_code, answer.headers["preference-applied"]) == (
            204,
            minimal["prefer"],
        )
    assert client.get(url).json().items() >= usual.item(1).items()


def writers_get_their_own_answers(client: httpx2.Client, usual: Usual) -> None:
    """Clients that create at once get the item that each sent, and all are stored."""
    with ThreadPoolExecutor(20) as threads:
        answers = list(
            threads.map(lambda number: client.post(usual.path, json=usual.item(number)), range(40))
        )
    items = [answer.json() for answer in answers]
    for number, item in enumerate(items):
        assert usual.known(item) == {"id": item["id"], **usual.item(number)}
    assert client.get(usual.path).json() == sorted(items, key=lambda item: item["id"])


LAWS: Sequence[Law] = (
    created_items_are_read_back,
    optional_fields_have_defaults,
    pages_are_walked,
    long_listings_are_whole,
    filters_select,
    searches_find,
    batches_are_stored_whole_or_not,
    changes_keep_the_rest,
    conditions_guard_writes,
    deleted_items_are_gone,
    retries_store_once,
    bad_values_are_told,
    clients_may_want_no_answer,
    writers_get_their_own_answers,
)
