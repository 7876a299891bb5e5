"""How often the event loop turns while the application answers, in this process."""

import asyncio
from collections.abc import Mapping

import httpx2

from service.app import app


def turns_while_refused(path: str, body: bytes, headers: Mapping[str, str]) -> int:
    """The turns of the event loop while the body is posted, which has to be a 422."""

    async def count() -> int:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            turning = asyncio.create_task(turn())
            answer = await client.post(path, content=body, headers=headers)
            turning.cancel()
        assert answer.status_code == 422
        return turns

    return asyncio.run(count())
