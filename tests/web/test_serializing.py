"""Compiled functions equal their schema's own dump and load."""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Literal
from urllib.parse import urlsplit

import asyncmy
import asyncpg
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import Schema, ValidationError, fields, post_dump, validates, validates_schema
from marshmallow.validate import Length

from service.notes.resource import NOTES
from service.schemas.compiled import OTHER, compile_dump, compile_load, compile_usual
from service.schemas.fields import Choice, Date, Input, Integer, List, Text, Timestamp
from service.schemas.validation import InvalidInput, load, load_all
from service.web.requests import load_short, parse
from tests.support import databases
from tests.support.databases import KINDS

Fetch = Callable[[list[tuple[int, str, bool]]], list[Any]]
ids = st.integers(1, 2**53 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
notes = st.lists(st.tuples(ids, texts, st.booleans()), max_size=5, unique_by=lambda note: note[0])


@pytest.fixture(scope="module", params=KINDS)
def fetch(request: pytest.FixtureRequest, new_database: databases.NewDatabase) -> Iterator[Fetch]:
    """Stores notes in a real database and gives the driver's rows of them."""
    url = new_database(request.param)
    insert = "INSERT INTO notes (id, text, completed) VALUES"
    if request.param == "sqlite":
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.row_factory = sqlite3.Row

            def fetch_from_sqlite(new: list[tuple[int, str, bool]]) -> list[Any]:
                connection.execute("DELETE FROM notes")
                connection.executemany(f"{insert} (?, ?, ?)", new)
                return connection.execute("SELECT * FROM notes ORDER BY id").fetchall()

            yield fetch_from_sqlite
    elif request.param == "mysql":
        parts = urlsplit(url)
        login = {"user": parts.username, "password": parts.password, "database": parts.path[1:]}
        with asyncio.Runner() as runner:
            mysql = runner.run(asyncmy.connect(host=parts.hostname, port=parts.port, **login))

            async def fetch_from_mysql(new: list[tuple[int, str, bool]]) -> list[Any]:
                async with mysql.cursor(asyncmy.cursors.DictCursor) as cursor:
                    await cursor.execute("DELETE FROM notes")
                    for note in new:
                        await cursor.execute(f"{insert} (%s, %s, %s)", note)
                    await cursor.execute("SELECT * FROM notes ORDER BY id")
                    return list(await cursor.fetchall())

            yield lambda new: runner.run(fetch_from_mysql(new))
            runner.run(mysql.ensure_closed())
    else:
        with asyncio.Runner() as runner:
            postgresql = runner.run(asyncpg.connect(url))

            async def store_and_fetch(new: list[tuple[int, str, bool]]) -> list[Any]:
                await postgresql.execute("DELETE FROM notes")
                await postgresql.executemany(f"{insert} ($1, $2, $3)", new)
                return list(await postgresql.fetch("SELECT * FROM notes ORDER BY id"))

            yield lambda new: runner.run(store_and_fetch(new))
            runner.run(postgresql.close())


@settings(max_examples=200)
@given(new=notes)
def test_the_serializer_equals_the_schema(fetch: Fetch, new: list[tuple[int, str, bool]]) -> None:
    """Any note of any database is serialized as `Schema.dump` would, with keys in its order."""
    rows = fetch(new)
    assert len(rows) == len(new)
    expected = NOTES.shape.dump(rows, many=True)
    dumped = compile_dump(NOTES.shape)(rows)
    assert [list(note.items()) for note in dumped] == [list(note.items()) for note in expected]
    assert [type(note["completed"]) for note in dumped] == [bool] * len(new)
    assert json.loads(orjson.dumps(dumped)) == expected


def test_data_keys_and_attributes_are_kept() -> None:
    """The serializer has the schema's names for keys and columns."""
    schema = Schema.from_dict(
        {"number": fields.Integer(attribute="id"), "text": fields.String(data_key="the 'text'")}
    )()
    row = {"id": 1, "text": "a"}
    assert compile_dump(schema)([row]) == [{"number": 1, "the 'text'": "a"}]
    assert compile_dump(schema)([row]) == schema.dump([row], many=True)


def test_other_fields_are_left_to_the_schema() -> None:
    """A schema with a field that the compiler doesn't know is dumped by marshmallow."""
    schema = Schema.from_dict({"id": fields.Integer(), "hex": fields.Function(lambda row: "ff")})()
    assert compile_dump(schema)([{"id": 1}]) == [{"id": 1, "hex": "ff"}]


def test_hooks_of_a_schema_are_called() -> None:
    """A check refuses a usual object, too, and what a schema adds to its dump is there."""

    class Checked(Input):
        it = Text(5, required=True)

        @validates("it")
        def refuse(self, value: str, **_: Any) -> None:
            if value == "bad":
                raise ValidationError("no")

        @post_dump
        def add(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
            return {**data, "more": 1}

    for data in ({"it": "good"}, {"it": "bad"}):
        assert outcome(compile_load(Checked()), data) == outcome(Checked().load, data)
    assert compile_dump(Checked())([{"it": "a"}]) == [{"it": "a", "more": 1}]


def test_a_check_may_name_a_field_that_is_not_there() -> None:
    """The error of a check of the whole object has the field's place, and shows the object."""

    class Checked(Input):
        it = Text(5, load_default="")

        @validates_schema
        def refuse(self, data: dict[str, Any], **_: Any) -> None:
            raise ValidationError("no", "it")

    with pytest.raises(InvalidInput) as refused:
        load(Checked().load, {"other": 1}, "body")
    assert list(refused.value.errors) == [
        {"type": "value_error", "loc": ("body", "it"), "msg": "no", "input": {"other": 1}}
    ]


@pytest.mark.parametrize("field", [Date(), Timestamp(), List(Integer(), 3)])
def test_a_row_from_before_its_column_is_dumped(field: fields.Field[Any]) -> None:
    """NULL in a new column, whose values are required from now on, is null."""
    dump = compile_dump(Schema.from_dict({"it": field})())
    assert dump([{"it": None}]) == [{"it": None}]


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(["\0", "\ud800"]),
)
keys = st.sampled_from(["text", "completed", "other"])
inputs = st.one_of(
    values,
    st.lists(values, max_size=2),
    st.dictionaries(keys, values),
    st.fixed_dictionaries({"text": st.text() | values, "completed": st.booleans() | values}),
)


def outcome(load: Callable[[Any], Any], data: Any) -> tuple[Any, Any]:
    """The result of a load, or its error messages."""
    try:
        loaded = load(data)
    except ValidationError as error:
        return None, error.messages
    return {name: (type(value), value) for name, value in loaded.items()}, None


@settings(max_examples=250)
@given(data=inputs)
def test_the_compiled_load_equals_the_schemas(data: Any) -> None:
    """Any JSON has the same values or errors as with `Schema.load`."""
    assert outcome(compile_load(NOTES.new), data) == outcome(NOTES.new.load, data)


class Task(Input):
    """Each type of field that the service has, and null, and defaults."""

    text = Text(5, required=True)
    number = Integer(0, 9, load_default=3)
    due = Date(load_default=None)
    at = Timestamp(required=True)
    level = Choice("low", "high", "it's", load_default="low")
    kind = Choice("only", allow_none=True)
    words = List(Text(5), 2, load_default="[]")
    numbers = List(Integer(0, 9), 2, load_default=None)


task = {
    "text": "a",
    "number": 1,
    "due": "2026-02-28",
    "at": "2026-02-28T12:00:00Z",
    "level": "high",
    "kind": None,
    "words": ["a", "\u00e4"],
    "numbers": None,
}
dates = st.sampled_from(["2026-02-28", "2026-02-30", "2026-2-28", "2026-W09-6", "0000-01-01"])
# Each with its second, if it has one in the years of UTC.
odd_times = {
    "2026-02-28t12:00:00.999999999+01:30": 1_772_274_600,
    "2026-02-28 12:00:00z": 1_772_280_000,
    "1969-12-31T23:59:58.5Z": -2,
    "9999-12-31T23:59:59.999999Z": 253_402_300_799,
    "2026-02-28T12:00:00": None,
    "2026-02-28T24:00:00Z": None,
    "2026-02-30T12:00:00Z": None,
    "0001-01-01T00:00:00+01:00": None,
    "9999-12-31T23:59:59-01:00": None,
}
times = st.sampled_from(list(odd_times)) | st.datetimes(timezones=st.timezones()).map(
    lambda time: time.isoformat()
)
some = st.lists(values, max_size=3)
drawn: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(max_size=6),
    "number": st.integers(-1, 10),
    "due": dates | st.dates().map(str),
    "at": times,
    "level": st.sampled_from(["low", "high", "High"]),
    "kind": st.sampled_from(["only", "other"]),
    "words": st.lists(st.text(max_size=6), max_size=3) | some,
    "numbers": st.lists(st.integers(-1, 10), max_size=3) | some,
}
# One value is not compiled, or refused, while all others are usual ones.
tasks = st.sampled_from(list(drawn)).flatmap(
    lambda name: (drawn[name] | values).map(lambda value: {**task, name: value})
)


@settings(max_examples=500)
@given(data=tasks)
def test_every_type_is_loaded_as_by_the_schema(data: Any) -> None:
    """Any values of any types of fields are loaded, or refused, as by `Schema.load`."""
    assert outcome(compile_load(Task()), data) == outcome(Task().load, data)


@pytest.mark.parametrize("given", [task, {name: task[name] for name in ("text", "at", "kind")}])
def test_no_usual_value_needs_marshmallow(given: dict[str, Any]) -> None:
    """Values of all types, nulls and defaults are loaded without the schema."""
    schema = Task()
    load = compile_load(schema)
    expected = schema.load(given)
    schema.load = None  # type: ignore[method-assign, assignment]
    assert load(given) == expected


seconds = st.integers(-62_135_596_800, 253_402_300_799)
stored = st.fixed_dictionaries(
    {
        "text": texts,
        "number": st.integers(),
        "due": st.none() | st.dates(),
        "at": seconds,
        "level": st.sampled_from(["low", "high"]),
        "kind": st.none() | st.just("only"),
        "words": st.lists(texts).map(lambda words: orjson.dumps(words).decode()),
        "numbers": st.none() | st.just("[1,2]"),
    }
)


@settings(max_examples=300)
@given(row=stored)
def test_every_type_is_dumped_as_by_the_schema(row: Any) -> None:
    """Any row with columns of all types is dumped as `Schema.dump` would, by other code."""
    schema = Task()
    dump = compile_dump(schema)
    expected = schema.dump(row)
    schema.dump = None  # type: ignore[method-assign, assignment]
    assert dump([row]) == [expected]


@given(time=seconds)
def test_times_are_read_as_they_are_written(time: int) -> None:
    """A time that the service shows is read as the same second."""
    assert Task().load({**task, "at": Task().dump({"at": time})["at"]})["at"] == time


@pytest.mark.parametrize(("time", "second"), odd_times.items())
def test_times_are_read_as_rfc_3339_has_them(time: str, second: int | None) -> None:
    """Other zones are read, and fractions dropped; what has no second is refused."""
    loaded, errors = outcome(Task().load, {**task, "at": time})
    if second is not None:
        assert loaded["at"] == (int, second)
    else:
        assert errors == {"at": ["datetime_parsing"]}


@pytest.mark.parametrize(
    ("field", "value", "loc", "message"),
    [
        ("due", "2026-2-28", [], "Input should be a valid date in the format YYYY-MM-DD"),
        ("at", 7, [], "Input should be a valid datetime"),
        ("level", None, [], "Input should be 'low', 'high' or \"it's\""),
        ("kind", "other", [], "Input should be 'only'"),
        ("words", "a", [], "Input should be a valid list"),
        ("words", ["a", 7], [1], "Input should be a valid string"),
        ("words", ["a"] * 3, [], "List should have at most 2 items after validation, not 3"),
        ("numbers", [0, 10], [1], "Input should be less than or equal to 9"),
    ],
)
def test_errors_have_their_place(field: str, value: object, loc: list[int], message: str) -> None:
    """Each wrong value is told in FastAPI's words, also within a list."""
    found = errors_of(lambda: load(Task().load, {**task, field: value}, "body"))
    assert [(error["loc"], error["msg"]) for error in found] == [(("body", field, *loc), message)]


# What `json` reads in another way than others, or refuses.
odd_json = ["18446744073709551616", "1e400", "-0", "1.0", "NaN", '"\\ud800"', "9" * 900, "[" * 480]
pieces = st.sampled_from([*odd_json, "", " ", ",", "}", '"', "\0", "\x1f", "\ufeff", '"text":"b",'])
changes = st.tuples(st.integers(0, 200), st.integers(0, 3), pieces)
encodings = st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])


@settings(max_examples=1000)
@given(data=tasks, ascii_only=st.booleans(), change=changes, encoding=encodings)
def test_short_json_is_read_as_all_json(
    data: Any, ascii_only: bool, change: tuple[int, int, str], encoding: str
) -> None:
    """A body that is read in the fast way has the values that it has in the usual one."""
    text = json.dumps(data, ensure_ascii=ascii_only)
    place, length, piece = change
    for changed in (text, text[:place] + piece + text[place + length :]):
        body = changed.encode(encoding, "replace")
        found = load_short(compile_usual(Task()), body, "application/json")
        if found is not OTHER:
            usual = Task().load(parse(body, "application/json"))
            assert outcome(dict, found) == outcome(dict, usual)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_usual_short_json_is_read_fast(content_type: str) -> None:
    """A usual item needs neither `json` nor marshmallow, if it is called JSON."""
    found = load_short(compile_usual(Task()), orjson.dumps(task), content_type)
    assert (found is not OTHER) == (content_type == "application/json")


@pytest.mark.parametrize("value", ["9" * 4301, "[" * 990 + "]" * 990])
def test_what_json_may_refuse_is_not_read_fast(value: str) -> None:
    """What `json` refuses on some Python, for a number's length or for depth, is left to it."""
    body = orjson.dumps(task)[:-1] + f',"more":{value}}}'.encode()
    assert load_short(compile_usual(Task()), body, "application/json") is OTHER


def errors_of(load: Callable[[], Any]) -> Any:
    """The loaded values, or the errors of the 422."""
    try:
        return load()
    except InvalidInput as invalid:
        return invalid.errors


@settings(max_examples=300)
@given(data=st.lists(inputs, min_size=1, max_size=6))
def test_an_array_is_loaded_as_by_the_schema(data: list[Any]) -> None:
    """Any array has the same values, or errors in order, as with `many=True`."""
    load_note = compile_load(NOTES.new)
    whole = errors_of(lambda: load(type(NOTES.new)(many=True).load, data, "body"))
    assert errors_of(lambda: asyncio.run(load_all(load_note, data, 6, "body"))) == whole


@pytest.mark.parametrize("text", ["a", "\u00e4 \U0001f600"])
def test_what_needs_no_conversion_does_without_marshmallow(text: str) -> None:
    """A usual note never reaches the schema, where most of the time would go."""
    schema = type(NOTES.new)()
    load = compile_load(schema)
    schema.load = None  # type: ignore[method-assign, assignment]
    note = type(NOTES.new)().load({"text": text, "completed": True})
    assert load(note) == note
    assert asyncio.run(load_all(load, [note] * 3, 3)) == [note] * 3


@pytest.mark.parametrize(
    ("field", "given"),
    [
        (Text(validate=Length(max=3)), {"it": "longer"}),
        (Text(3), {"it": "longer"}),
        (Text(data_key="that"), {"that": "a"}),
        (Text(attribute="that"), {"it": "a"}),
        (Text(load_default="a"), {}),
        (Text(allow_none=True), {"it": None}),
        (Text(load_default=lambda: "a"), {}),
        (List(Text(3, validate=Length(max=2)), 3), {"it": ["long"]}),
        (fields.Integer(), {"it": "7"}),
    ],
)
@pytest.mark.parametrize("unknown", ["exclude", "raise"])
def test_whatever_else_a_schema_has_is_kept(
    field: fields.Field[Any], given: dict[str, Any], unknown: Literal["exclude", "raise"]
) -> None:
    """Fields that aren't plain, and a schema's own rules, are left to marshmallow."""
    schema = Schema.from_dict({"it": field})(unknown=unknown)
    for data in (given, {**given, "other": 1}):
        assert outcome(compile_load(schema), data) == outcome(schema.load, data)
