"""What the document says of the operations on notes."""

from typing import Any

from service.notes.schemas import MAX_BATCH, MAX_PAGE, MAX_Q, note_in, note_out, note_patch
from service.openapi.parts import (
    BODY_ERRORS,
    IF_MATCH,
    IF_NONE_MATCH,
    INVALID,
    KEY,
    PREFER,
    TAGS,
    UNAVAILABLE,
    header,
    json_content,
    parameter,
    response,
    tag,
)
from service.schemas.fields import MAX_ID, NO_NUL

SCHEMAS = {"NoteIn": note_in, "NotePatch": note_patch, "Note": note_out}

TAG = tag("Notes", "Short texts, each of them done or not.")
NOT_FOUND = {"404": response("There is no such note", "Error")}
CHANGED = {"412": response("The note is not what If-Match or If-None-Match want", "Error")}

ETAG = {"ETag": header("A strong entity tag of the note", '"5d3f0a0c7e2b4f6a8c9d0e1f"')}
APPLIED = {"Preference-Applied": header("What was done of Prefer", "return=minimal")}
MINIMAL = {"204": {"description": "Done, as Prefer: return=minimal wants it", "headers": APPLIED}}
NOTE = {**response("Successful Response", "Note"), "headers": ETAG}
PATH = {"Content-Location": header("The path of the note that is meant", "/notes/1")}
OF_NOTE = {**ETAG, **PATH}
WRITTEN_NOTE = {**NOTE, "headers": OF_NOTE}
# The tag of what is stored is no tag of what was sent (RFC 9110, section 9.3.4).
MINIMAL_PUT = {"204": {**MINIMAL["204"], "headers": {**APPLIED, **PATH}}}
MINIMAL_NOTE = {"204": {**MINIMAL["204"], "headers": {**APPLIED, **OF_NOTE}}}

IF_LISTING_CHANGED = parameter(
    "header",
    "If-None-Match",
    "Entity tags, none of which the listing has",
    '"5d3f0a0c7e2b4f6a8c9d0e1f"',
    type="string",
    pattern=TAGS,
)
PREFER_COUNT = parameter(
    "header",
    "Prefer",
    "`count=exact` for the number of all selected notes (RFC 7240)",
    "count=exact",
    type="string",
)
NOTE_ID = parameter(
    "path", "note_id", "The note's id", 1, type="integer", minimum=1, maximum=MAX_ID
)
NOTES = {"type": "array", "items": {"$ref": "#/components/schemas/Note"}}
CONDITIONS = (
    "With `If-Match` or `If-None-Match` only if the note is as they want it; else the answer is a"
    " 412."
)

# By the name of the operation's function.
OPERATIONS: dict[str, dict[str, Any]] = {
    "read_notes": {
        **TAG,
        "description": (
            "All notes, in the order of their ids.\n\n"
            "With `limit` it is a page; `Link` leads to the next one, if there is one.\n\n"
            "With `Accept: application/x-ndjson` each note is a line of its own, without brackets "
            "and commas.\n\n"
            "Other errors have a sentence in `detail`: 406 for a client that takes neither gzip "
            "nor the plain body, 412 for an `If-Match` that does not name the listing, 414 for "
            "more than 1,000 parameters, 503 with `Retry-After` for a database that is away, full "
            "or slow."
        ),
        "parameters": [
            parameter(
                "query", "limit", "Notes a page", 100, type="integer", minimum=1, maximum=MAX_PAGE
            ),
            parameter(
                "query",
                "after",
                "The id behind which to go on, as the Link header has it",
                100,
                type="integer",
                minimum=0,
                maximum=MAX_ID,
            ),
            parameter(
                "query",
                "order",
                "Of the ids",
                "desc",
                type="string",
                enum=["asc", "desc"],
                default="asc",
            ),
            parameter("query", "completed", "Only notes that are or aren't", True, type="boolean"),
            parameter(
                "query",
                "q",
                "Only notes that contain this, in upper or lower case",
                "milk",
                type="string",
                maxLength=MAX_Q,
                pattern=NO_NUL,
            ),
            IF_LISTING_CHANGED,
            PREFER_COUNT,
        ],
        "responses": {
            "200": {
                **response(
                    "Successful Response",
                    {**NOTES, "title": "Response Read Notes Notes  Get"},
                ),
                "headers": {
                    "Link": header(
                        "The page that follows, with rel=next (RFC 8288)",
                        '<http://localhost:8000/notes/?limit=100&after=100>; rel="next"',
                    ),
                    "ETag": header(
                        "A strong entity tag, but for listings of over 1,000 notes or 2 MB of text",
                        '"5d3f0a0c7e2b4f6a8c9d0e1f"',
                    ),
                    "X-Total-Count": header(
                        "How many notes are selected, for count=exact", 3, "integer"
                    ),
                    "Preference-Applied": header("What was done of Prefer", "count=exact"),
                },
            },
            "304": {
                "description": "The client has this listing already",
                "headers": {"ETag": header("The listing's tag", '"5d3f0a0c7e2b4f6a8c9d0e1f"')},
            },
            **INVALID,
        },
    },
    "create_note": {
        **TAG,
        "description": (
            "Stores a note, and gives it its id.\n\n"
            "With `Prefer: return=minimal` the answer is a 204 without a body; `Location` is the "
            "note's URL.\n\n"
            "Other errors say in `detail`, in words, what is wrong: 400 for a body that can't be "
            "decoded, 413 for one over the limit, 415 for one with a `Content-Encoding`, 503 with "
            "`Retry-After` for a database that is away, full or slow."
        ),
        "parameters": [KEY, PREFER],
        "requestBody": {"required": True, **json_content("NoteIn")},
        "responses": {"200": WRITTEN_NOTE, **INVALID},
    },
    "create_notes": {
        **TAG,
        "description": (
            f"Stores up to {MAX_BATCH:,} notes, all or none.\n\n"
            "With `Content-Type: application/x-ndjson` each line of the body is a note, and with "
            "`Accept: application/x-ndjson` each line of the answer."
        ),
        "parameters": [KEY, PREFER],
        "requestBody": {
            "required": True,
            **json_content(
                {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/NoteIn"},
                    "minItems": 1,
                    "maxItems": MAX_BATCH,
                }
            ),
        },
        "responses": {
            "200": response("The stored notes in the order sent", NOTES),
            **MINIMAL,
            **BODY_ERRORS,
        },
    },
    "read_note": {
        **TAG,
        "description": (
            "A note by its id. With `If-None-Match` and the `ETag` of an answer before, an "
            "unchanged note is a 304 without a body."
        ),
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
        **TAG,
        "description": f"Gives a note other values for all its fields. {CONDITIONS}",
        "parameters": [NOTE_ID, IF_MATCH, IF_NONE_MATCH, PREFER],
        "requestBody": {"required": True, **json_content("NoteIn")},
        "responses": {"200": WRITTEN_NOTE, **MINIMAL_PUT, **NOT_FOUND, **CHANGED, **BODY_ERRORS},
    },
    "change_note": {
        **TAG,
        "description": f"Gives a note other values for the fields in the body. {CONDITIONS}",
        "parameters": [NOTE_ID, IF_MATCH, IF_NONE_MATCH, PREFER],
        "requestBody": {"required": True, **json_content("NotePatch")},
        "responses": {"200": WRITTEN_NOTE, **MINIMAL_NOTE, **NOT_FOUND, **CHANGED, **BODY_ERRORS},
    },
    "delete_note": {
        **TAG,
        "description": f"Removes a note for good. {CONDITIONS}",
        "parameters": [NOTE_ID, IF_MATCH, IF_NONE_MATCH],
        "responses": {
            "204": {"description": "The note is gone"},
            **NOT_FOUND,
            **CHANGED,
            **UNAVAILABLE,
        },
    },
}
