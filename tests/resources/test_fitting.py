"""Definitions whose parts don't fit together are refused at the start."""

from datetime import date
from typing import Any

import pytest
import sqlalchemy
from marshmallow.fields import Decimal, Field
from sqlalchemy import BigInteger, Column, Date, MetaData, Numeric, SmallInteger, String, Table

from service.openapi.document import document
from service.resources.definition import AtLeast, Definition, Filter, Search, with_id
from service.resources.usual import Usual
from service.schemas import fields
from service.tables import ID, sorted_text
from service.web.routing import Path, Resource


def table(*columns: Column[Any]) -> Table:
    return Table("things", MetaData(), Column("id", ID, primary_key=True), *columns)


def define(
    things: Table, read: dict[str, Field[Any]], name: str = "thing", *times: str, **options: Any
) -> Definition:
    """A resource with these fields."""
    new = fields.Input.from_dict(read)
    return Definition(things, name, new(), with_id(new, "Thing", *times), **options)


def column(kind: Any, **options: Any) -> Column[Any]:
    return Column("it", kind, **options)


TEXT = fields.Text(5, required=True)


@pytest.mark.parametrize(
    ("field", "of_column", "why"),
    [
        (fields.Text(required=True), column(String(5)), "max_length"),
        (fields.Text(6, required=True), column(String(5)), "shorter"),
        (fields.Choice("a", "long", required=True), column(String(3)), "shorter"),
        (fields.Text(5, load_default=None), column(String(5), nullable=False), "may be null"),
        (fields.Text(5), column(String(5)), "required"),
        (fields.Integer(required=True), column(Numeric), "of the type Integer"),
        (Decimal(required=True), column(Numeric), "Decimal is none of the fields"),
        (fields.Integer(0, 2**31, required=True), column(sqlalchemy.Integer), "too small"),
        (fields.Integer(-(2**15) - 1, 1, required=True), column(SmallInteger), "too small"),
        (fields.Integer(0, 2**63, required=True), column(BigInteger), "too small"),
        (fields.Timestamp(required=True), column(sqlalchemy.DateTime), "of the type BigInteger"),
        (fields.Boolean(required=True), column(sqlalchemy.Integer), "of the type Boolean"),
        (fields.List(fields.Integer(), 3, required=True), column(String(9)), "without a length"),
        (fields.List(fields.Integer(), 3, load_default=[]), column(String), "has to be str"),
        (fields.Date(load_default="2026-01-01"), column(Date), "has to be date"),
        (fields.Integer(load_default=True), column(sqlalchemy.Integer), "has to be int"),
    ],
)
def test_a_field_has_to_fit_its_column(field: Field[Any], of_column: Column[Any], why: str) -> None:
    """What a column can't hold on each database, or nothing gives a value, is refused."""
    with pytest.raises(ValueError, match=rf"^things\.it\b.*{why}"):
        define(table(of_column), {"it": field})


def test_what_fits_is_taken() -> None:
    """Fields at their columns' bounds, defaults, and columns that something else fills."""
    define(
        table(
            Column("text", String(5), nullable=False),
            Column("word", String(4), nullable=False),
            Column("least", SmallInteger, nullable=False),
            Column("most", BigInteger),
            Column("day", Date, nullable=False),
            Column("list", String, nullable=False),
            Column("kept", String(9), nullable=False, server_default=""),
            Column("folded", String(15)),
            Column("created_at", BigInteger, nullable=False),
        ),
        {
            "text": fields.Text(5, load_default="a"),
            "word": fields.Choice("a", "long", load_default="a"),
            "least": fields.Integer(-(2**15), 2**15 - 1, load_default=0),
            "most": fields.Integer(0, 2**63 - 1, load_default=None),
            "day": fields.Date(load_default=date(2026, 1, 1)),
            "list": fields.List(fields.Integer(), 3, load_default="[]"),
        },
        "thing",
        "created_at",
    )


def searched(
    field: Field[Any], names: tuple[str, str] = ("it", "folded"), **folded: Any
) -> Definition:
    """A resource whose text and whose folded text have these names."""
    things = table(column(String(5)), Column("folded", **folded))
    text, other = (things.c[name] for name in names)
    return define(things, {"it": field}, search=Search(text, other, "a"))


def test_a_large_or_searched_text_is_not_null() -> None:
    """A field that may be null is refused for them."""
    field = fields.Text(5, load_default=None)
    things = table(column(String(5)))
    with pytest.raises(ValueError, match="may be null"):
        define(things, {"it": field}, large=things.c.it)
    with pytest.raises(ValueError, match="may be null"):
        searched(field, type_=String)


@pytest.mark.parametrize(
    ("names", "folded", "why"),
    [
        (("it", "it"), {"type_": String}, "column of its own"),
        (("it", "folded"), {"type_": String, "nullable": False, "server_default": ""}, "NULL"),
        (("it", "folded"), {"type_": String(14)}, "3 times as long"),
        (("it", "folded"), {"type_": Date}, "has to be a String"),
        (("folded", "it"), {"type_": String}, "no text that clients send"),
    ],
)
def test_a_searched_text_has_a_folded_one(
    names: tuple[str, str], folded: dict[str, Any], why: str
) -> None:
    """The text is one that clients send, and the other has room for each of its foldings."""
    with pytest.raises(ValueError, match=why):
        searched(TEXT, names, **folded)


def test_no_character_is_longer_when_folded() -> None:
    """Three times the text's length is enough."""
    assert max(len(chr(code).casefold()) for code in range(0x110000)) == 3


OTHER = table(column(String(5)))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"filters": {"limit": Filter(OTHER.c.it, "", "")}}, "no column of things"),
        ({"large": OTHER.c.it}, "no column of things"),
        ({"name": "things"}, "no name"),
        ({"name": "cooking thing"}, "no name"),
    ],
)
def test_what_is_used_belongs_to_the_table(options: dict[str, Any], why: str) -> None:
    """Columns of other tables, and names that no path can have, are refused."""
    with pytest.raises(ValueError, match=why):
        define(table(column(String(5))), {"it": TEXT}, **options)


def test_filters_are_columns_that_are_shown() -> None:
    """A filter has another name than the other parameters, and is for a value that is shown."""
    things = table(
        column(String(5)), Column("list", String, nullable=False), Column("hidden", Date)
    )
    read: dict[str, Field[Any]] = {
        "it": TEXT,
        "list": fields.List(fields.Integer(), 3, required=True),
    }
    with pytest.raises(ValueError, match="parameter of every listing"):
        define(things, read, filters={"limit": Filter(things.c.it, "", "")})
    for name in ("id", "list", "hidden"):
        with pytest.raises(ValueError, match="can't be a filter"):
            define(things, read, filters={"one": Filter(things.c[name], "", "")})
    with pytest.raises(ValueError, match="sorted_text"):
        define(things, read, filters={"least": AtLeast(things.c.it, "", "")})


def test_each_column_is_filled() -> None:
    """A column that can't be NULL, and that nothing fills, is refused; so is a missing one."""
    with pytest.raises(ValueError, match=r"things\.it can't be NULL, and neither"):
        define(table(column(String(5), nullable=False, default="a")), {})
    with pytest.raises(ValueError, match="no column for the field it"):
        define(table(), {"it": TEXT})
    with pytest.raises(ValueError, match="of the type BigInteger"):
        define(table(Column("created_at", sqlalchemy.Integer)), {}, "thing", "created_at")
    with pytest.raises(ValueError, match="none of the times"):
        define(table(), {}, "thing", "published_at")
    without = Table("things", MetaData(), Column("id", String(36), primary_key=True))
    with pytest.raises(ValueError, match="primary key"):
        define(without, {})


def resource_of(path: str) -> Resource:
    definition = define(table(Column("it", sorted_text(5), nullable=False)), {"it": TEXT})
    usual = Usual(definition, "For tests.")
    return Resource(usual.schemas, Path(path, GET=usual.read("read_thing")))


def test_names_are_there_once() -> None:
    """A path or a schema's name that is there twice is refused, and another name in a path."""
    one = resource_of("/things/{thing_id}")
    assert document([one], by_token=False)["paths"].keys() == {"/things/{thing_id}"}
    with pytest.raises(ValueError, match="same path"):
        document([one, Resource({}, *one.paths)], by_token=False)
    with pytest.raises(ValueError, match="schemas of one name"):
        document([one, Resource(one.schemas)], by_token=False)
    with pytest.raises(ValueError, match="other parameters of the path"):
        document([resource_of("/things/{id}")], by_token=False)
