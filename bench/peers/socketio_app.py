"""python-socketio with its Redis manager: what is emitted anywhere goes to everybody."""

from __future__ import annotations

import os

import socketio

server = socketio.AsyncServer(
    async_mode="asgi",
    client_manager=socketio.AsyncRedisManager(os.environ["REDIS"], channel="bench"),
    cors_allowed_origins="*",
    ping_interval=3600,  # the load client does not answer pings of Engine.IO
)
app = socketio.ASGIApp(server)
