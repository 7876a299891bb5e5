"""Parse, call notes, respond."""

import orjson
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from service import notes
from service.body import read_json
from service.schemas import note_in, note_out, notes_out


def json_response(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


class Notes(HTTPEndpoint):
    """`/notes/`: one class for the path, so that a 405 names every method in `Allow`."""

    async def get(self, request: Request) -> Response:
        return json_response(notes_out.dump(await notes.list_notes()))

    async def post(self, request: Request) -> Response:
        note = note_in.load(await read_json(request))
        return json_response(note_out.dump(await notes.insert_note(**note)))


async def home(request: Request) -> Response:
    return RedirectResponse(request.url_for("docs"))
