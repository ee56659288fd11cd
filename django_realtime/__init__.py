"""Server-sent events, WebSockets and other long-lived connections for Django: `import django_realtime as realtime`."""

from __future__ import annotations

from gunicorn_realtime.errors import (
    BusUnavailable,
    ChannelNameError,
    OffloadRefused,
    ProtocolError,
    RealtimeError,
    TooLarge,
)

from .clock import cursor
from .emitting import aemit, emit
from .engineio_view import EngineIOView
from .identity import disconnect
from .members import presence
from .publishing import MessageId, apublish, publish, publish_many
from .receivers import ReceivedMessage, receiver
from .socketio import engineio, socketio
from .socketio_endpoint import ConnectionRefused
from .socketio_view import SocketIOView
from .views import sse, websocket
from .websocket_view import WebSocketView

__version__ = "0.1.0"
__all__ = [
    "BusUnavailable",
    "ChannelNameError",
    "ConnectionRefused",
    "EngineIOView",
    "MessageId",
    "OffloadRefused",
    "ProtocolError",
    "RealtimeError",
    "ReceivedMessage",
    "SocketIOView",
    "TooLarge",
    "WebSocketView",
    "aemit",
    "apublish",
    "cursor",
    "disconnect",
    "emit",
    "engineio",
    "presence",
    "publish",
    "publish_many",
    "receiver",
    "socketio",
    "sse",
    "websocket",
]
