"""Liveness, readiness and metrics."""

import secrets

import orjson
from sqlalchemy import String, column, select, table
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service import metrics, settings, shutdown
from service.database.coalescing import coalesce
from service.database.dialect import dialect
from service.database.errors import DatabaseUnavailable
from service.database.statements import fetch
from service.revisions import HEAD
from service.tables import idempotency_keys, notes
from service.web.errors import RETRY, error_response
from service.web.requests import bearer_token
from service.web.responses import JSONBytes

_SELECT_VERSION = select(column("version_num", String)).select_from(table("alembic_version"))
_VERSION = dialect.prepare(_SELECT_VERSION)
_VERSION_IF_WRITABLE = dialect.prepare_on_writable(_SELECT_VERSION, [notes, idempotency_keys])


async def _read_versions(callers: list[None]) -> list[list[str]]:
    versions = [row["version_num"] for row in await fetch(_VERSION)]
    # An older version may lack the tables.
    if versions == [HEAD]:
        versions = [row["version_num"] for row in await fetch(_VERSION_IF_WRITABLE)]
    return [versions] * len(callers)


# One query at a time, for any number of readiness checks.
read_versions = coalesce(_read_versions, max_batch=10_000)


async def live(request: Request) -> Response:
    """200 while the process answers. It uses nothing else."""
    return JSONBytes(b'{"status":"live"}')


async def ready(request: Request) -> Response:
    """200 if the database takes writes and is migrated to head; 503 with the reason otherwise.

    It is a 503, too, as soon as the process has to stop, so that routers look for another one.
    """
    if shutdown.stopping.is_set():
        return error_response("The service is stopping", 503, RETRY)
    try:
        versions = await read_versions(None)
    except DatabaseUnavailable as error:
        return error_response(error.reason(), 503, RETRY)
    if versions != [HEAD]:
        found = ", ".join(versions) or "nothing"
        detail = f"The database is migrated to {found}, but the service needs {HEAD}"
        return error_response(detail, 503, RETRY)
    return JSONBytes(orjson.dumps({"status": "ready"}))


async def read_metrics(request: Request) -> Response:
    """Metrics for Prometheus. If METRICS_TOKEN is set, the request must send it."""
    if settings.METRICS_TOKEN:
        given = bearer_token(request.scope) or ""
        if not secrets.compare_digest(given.encode(), settings.METRICS_TOKEN.encode()):
            raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"})
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)
