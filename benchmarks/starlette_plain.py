"""The notes on Starlette the plain way: databases, marshmallow and JSONResponse."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import databases
import sqlalchemy
from marshmallow import Schema, ValidationError, fields
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

database = databases.Database(
    os.environ["DATABASE_URL"],
    min_size=1,
    max_size=int(os.environ.get("DATABASE_POOL_MAX", "5")),
)

metadata = sqlalchemy.MetaData()

notes = sqlalchemy.Table(
    "notes",
    metadata,
    sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column("text", sqlalchemy.String),
    sqlalchemy.Column("completed", sqlalchemy.Boolean),
)


class NoteSchema(Schema):
    id = fields.Integer(dump_only=True)
    text = fields.String(required=True)
    completed = fields.Boolean(required=True)


class PageSchema(Schema):
    limit = fields.Integer()
    after = fields.Integer(load_default=0)


note_schema = NoteSchema()
page_schema = PageSchema()


async def list_notes(request: Request) -> JSONResponse:
    query = notes.select()
    try:
        page = page_schema.load(request.query_params)
    except ValidationError as error:
        return JSONResponse(error.messages, status_code=422)
    if "limit" in page:
        query = query.where(notes.c.id > page["after"]).order_by(notes.c.id).limit(page["limit"])
    rows = await database.fetch_all(query)
    return JSONResponse(note_schema.dump(rows, many=True))


async def read_note(request: Request) -> JSONResponse:
    query = notes.select().where(notes.c.id == request.path_params["note_id"])
    row = await database.fetch_one(query)
    if row is None:
        raise HTTPException(status_code=404, detail="Note not found")
    return JSONResponse(note_schema.dump(row))


async def create_note(request: Request) -> JSONResponse:
    try:
        note = note_schema.load(await request.json())
    except ValidationError as error:
        return JSONResponse(error.messages, status_code=422)
    note_id = await database.execute(notes.insert().values(**note))
    return JSONResponse(note_schema.dump({**note, "id": note_id}))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    await database.connect()
    yield
    await database.disconnect()


app = Starlette(
    routes=[
        Route("/notes/", list_notes, methods=["GET"]),
        Route("/notes/", create_note, methods=["POST"]),
        Route("/notes/{note_id:int}", read_note, methods=["GET"]),
    ],
    lifespan=lifespan,
)
