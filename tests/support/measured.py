"""The service, which also tells how many blocks of memory are in use."""

import gc
import sys

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.app import app as service


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers to `GET /blocks` itself."""
    if scope["type"] == "http" and scope["path"] == "/blocks":
        gc.collect()
        await PlainTextResponse(str(sys.getallocatedblocks()))(scope, receive, send)
    else:
        await service(scope, receive, send)
