"""Messages of one Redis channel to everybody: by SSE on /sse, by WebSocket on /ws."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

queues: set[asyncio.Queue[str]] = set()


async def broadcast(pubsub) -> None:
    async for message in pubsub.listen():
        if message["type"] == "message":
            for queue in queues:
                queue.put_nowait(message["data"])


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with Redis.from_url(os.environ["REDIS"], decode_responses=True) as redis, redis.pubsub() as pubsub:
        await pubsub.subscribe("bench")
        task = asyncio.create_task(broadcast(pubsub))
        yield
        task.cancel()


async def messages() -> AsyncIterator[str]:
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues.add(queue)
    try:
        while True:
            yield await queue.get()
    finally:
        queues.remove(queue)


async def sse(request: Request) -> StreamingResponse:
    events = (f"data: {message}\n\n" async for message in messages())
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def websocket(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        async for message in messages():
            await websocket.send_text(message)
    except WebSocketDisconnect:
        pass


app = Starlette(routes=[Route("/sse", sse), WebSocketRoute("/ws", websocket)], lifespan=lifespan)
