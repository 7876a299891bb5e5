"""What the document says of the operations on notes."""

from typing import Any

from service.notes.schemas import MAX_BATCH, MAX_PAGE, MAX_Q, note_in, note_out, note_patch
from service.openapi.parts import (
    BODY_ERRORS,
    INVALID,
    UNAVAILABLE,
    header,
    json_content,
    parameter,
    response,
)
from service.schemas.fields import MAX_ID

SCHEMAS = {"NoteIn": note_in, "NotePatch": note_patch, "Note": note_out}

NOT_FOUND = {"404": response("There is no such note", "Error")}
CHANGED = {"412": response("The note is not what If-Match or If-None-Match want", "Error")}

ETAG = {"ETag": header("A strong entity tag of the note")}
APPLIED = {"Preference-Applied": header("return=minimal")}
MINIMAL = {"204": {"description": "Done, as Prefer: return=minimal wants it", "headers": APPLIED}}
NOTE = {**response("Successful Response", "Note"), "headers": ETAG}
MINIMAL_NOTE = {"204": {**MINIMAL["204"], "headers": {**APPLIED, **ETAG}}}

NOTE_ID = parameter("path", "note_id", "The note's id", type="integer", minimum=1, maximum=MAX_ID)
IF_MATCH = parameter("header", "If-Match", "Entity tags, one of which the note has", type="string")
IF_NONE_MATCH = parameter(
    "header", "If-None-Match", "Entity tags, none of which the note has", type="string"
)
IF_LISTING_CHANGED = parameter(
    "header", "If-None-Match", "Entity tags, none of which the listing has", type="string"
)
PREFER = parameter("header", "Prefer", "return=minimal for an answer without body", type="string")
PREFER_COUNT = parameter(
    "header", "Prefer", "count=exact for the number of all notes selected", type="string"
)
KEY = parameter(
    "header",
    "Idempotency-Key",
    "Makes a retry safe: the same key and body store once, for 24 hours",
    type="string",
    minLength=1,
    maxLength=255,
)
NOTES = {"type": "array", "items": {"$ref": "#/components/schemas/Note"}}
LINES = {"schema": {"type": "string", "description": "One note a line"}}


def lines_too(body: dict[str, Any]) -> dict[str, Any]:
    """The body, or as newline-delimited JSON."""
    return {**body, "content": {**body["content"], "application/x-ndjson": LINES}}


# By the name of the operation's function.
OPERATIONS: dict[str, dict[str, Any]] = {
    "read_notes": {
        "parameters": [
            parameter(
                "query", "limit", "Notes a page", type="integer", minimum=1, maximum=MAX_PAGE
            ),
            parameter(
                "query",
                "after",
                "The id behind which to go on, as the Link header has it",
                type="integer",
                minimum=0,
                maximum=MAX_ID,
            ),
            parameter(
                "query", "order", "Of the ids", type="string", enum=["asc", "desc"], default="asc"
            ),
            parameter("query", "completed", "Only notes that are or aren't", type="boolean"),
            parameter(
                "query",
                "q",
                "Only notes that contain this, in upper or lower case",
                type="string",
                maxLength=MAX_Q,
            ),
            IF_LISTING_CHANGED,
            PREFER_COUNT,
        ],
        "responses": {
            "200": {
                **lines_too(
                    response(
                        "Successful Response",
                        {**NOTES, "title": "Response Read Notes Notes  Get"},
                    )
                ),
                "headers": {
                    "Link": header("The page that follows, with rel=next (RFC 8288)"),
                    "ETag": header("A strong entity tag of the listing, unless it is streamed"),
                    "X-Total-Count": header(
                        "How many notes are selected, for count=exact", "integer"
                    ),
                    "Preference-Applied": header("count=exact"),
                },
            },
            "304": {"description": "The listing is what the client has"},
            **INVALID,
            **UNAVAILABLE,
        },
    },
    "create_note": {
        "parameters": [KEY, PREFER],
        "requestBody": {"required": True, **json_content("NoteIn")},
        "responses": {
            "200": NOTE,
            "204": {
                **MINIMAL_NOTE["204"],
                "headers": {**APPLIED, **ETAG, "Location": header("The note's URL")},
            },
            **BODY_ERRORS,
        },
    },
    "create_notes": {
        "parameters": [KEY, PREFER],
        "requestBody": {
            "required": True,
            **lines_too(
                json_content(
                    {
                        "type": "array",
                        "items": {"$ref": "#/components/schemas/NoteIn"},
                        "minItems": 1,
                        "maxItems": MAX_BATCH,
                    }
                )
            ),
        },
        "responses": {
            "200": lines_too(response("The stored notes in the order sent", NOTES)),
            **MINIMAL,
            **BODY_ERRORS,
        },
    },
    "read_note": {
        "parameters": [NOTE_ID, IF_NONE_MATCH, IF_MATCH],
        "responses": {
            "200": NOTE,
            "304": {"description": "The note is what the client has", "headers": ETAG},
            **NOT_FOUND,
            **CHANGED,
            **UNAVAILABLE,
        },
    },
    "replace_note": {
        "parameters": [NOTE_ID, IF_MATCH, IF_NONE_MATCH, PREFER],
        "requestBody": {"required": True, **json_content("NoteIn")},
        "responses": {"200": NOTE, **MINIMAL_NOTE, **NOT_FOUND, **CHANGED, **BODY_ERRORS},
    },
    "change_note": {
        "parameters": [NOTE_ID, IF_MATCH, IF_NONE_MATCH, PREFER],
        "requestBody": {"required": True, **json_content("NotePatch")},
        "responses": {"200": NOTE, **MINIMAL_NOTE, **NOT_FOUND, **CHANGED, **BODY_ERRORS},
    },
    "delete_note": {
        "parameters": [NOTE_ID, IF_MATCH, IF_NONE_MATCH],
        "responses": {
            "204": {"description": "The note is gone"},
            **NOT_FOUND,
            **CHANGED,
            **UNAVAILABLE,
        },
    },
}
