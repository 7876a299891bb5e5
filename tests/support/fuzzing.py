"""What Schemathesis can't read in the document, as its hooks.

It runs all its checks. Here is what the document says in words alone, for the sake of generated
clients, and where the service is lenient by a standard or as FastAPI is.
"""

import re
import uuid
from collections.abc import Mapping
from typing import Any

import schemathesis
from schemathesis import Case, HookContext

from service.openapi.parts import TAGS
from service.schemas.fields import BOOLEANS

_are_tags = re.compile(TAGS).fullmatch
_used: set[str] = set()


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Adds the answers that the descriptions of the example's operations tell of.

    Other resources than notes and users are left out. They may have owners, or need other items.
    """
    paths = raw_schema["paths"]
    raw_schema["paths"] = {
        path: paths[path] for path in paths if path.startswith(("/notes/", "/users/"))
    }
    for shape in ("NoteIn", "NotePatch"):
        properties = raw_schema["components"]["schemas"][shape]["properties"]
        # A note may refer to nothing; what else is there, the document doesn't tell.
        for name in properties:
            if name.endswith("_id"):
                properties[name] = {"type": "null"}
    notes, batch = (raw_schema["paths"][path] for path in ("/notes/", "/notes/batch"))
    for operation, statuses in ((notes["get"], ["503"]), (notes["post"], ["204", "400", "503"])):
        for status in statuses:
            assert status in operation["description"]
            operation["responses"][status] = batch["post"]["responses"][status]


def _is_lenient(value: Any) -> bool:
    """Whether it is read as a boolean though it is none."""
    return not isinstance(value, bool) and (
        value in (0, 1) if isinstance(value, int | float) else str(value).lower() in BOOLEANS
    )


def _objects(body: Any) -> list[dict[str, Any]]:
    return [item for item in (body if isinstance(body, list) else [body]) if isinstance(item, dict)]


@schemathesis.hook
def filter_case(context: HookContext, case: Case[Any]) -> bool:
    """Leaves out requests that break the document, where it is no failure to accept them.

    A condition that lists no entity tags matches nothing, and is no error. FastAPI reads some texts
    and numbers as booleans.
    """
    if case.meta is None or not case.meta.generation.mode.is_negative:
        return True
    headers: Mapping[str, Any] = case.headers or {}
    conditions = [headers[name] for name in ("If-Match", "If-None-Match") if name in headers]
    objects = [*_objects(case.body), *_objects(case.query)]
    booleans = [each["completed"] for each in objects if "completed" in each]
    return all(map(_are_tags, map(str, conditions))) and not any(map(_is_lenient, booleans))


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], **kwargs: Any) -> None:
    """Takes a new key where one was used before: with another body it is refused."""
    headers: Mapping[str, Any] = case.headers or {}
    key = str(headers.get("Idempotency-Key", "")).strip('"')
    if key in _used:
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
    elif key:
        _used.add(key)
