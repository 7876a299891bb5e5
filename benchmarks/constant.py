"""Starlette answering constant bodies: what the framework and the server cost by themselves."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

bodies = {"list": b"[]", "note": b"{}", "created": b"{}"}


def answer(body: bytes) -> Response:
    return Response(body, media_type="application/json")


async def list_notes(request: Request) -> Response:
    return answer(bodies["list"])


async def read_note(request: Request) -> Response:
    return answer(bodies["note"])


async def create_note(request: Request) -> Response:
    await request.body()
    return answer(bodies["created"])


async def set_body(request: Request) -> Response:
    """Take the body that requests of one kind get from now on."""
    bodies[request.path_params["kind"]] = await request.body()
    return Response(status_code=204)


app = Starlette(
    routes=[
        Route("/notes/", list_notes, methods=["GET"]),
        Route("/notes/", create_note, methods=["POST"]),
        Route("/notes/{note_id:int}", read_note, methods=["GET"]),
        Route("/bodies/{kind}", set_body, methods=["PUT"]),
    ]
)
