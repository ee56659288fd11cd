"""Server-sent events (WHATWG HTML, section 9.2): a hub's messages to EventSource.

Options:
    raw      messages are sent as they are: the publisher writes the event's lines itself
    event    the type of events whose publisher named none
    heartbeat  seconds between two comments that keep proxies from closing a silent stream
    retry    [least, most] seconds that a client waits before it reconnects
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..protocols import sse
from ..refusal import RETRY
from .base import Engine, heartbeat_of

if TYPE_CHECKING:
    from ..bus.message import Message
    from ..hub.connection import Connection
    from ..plumbing.handover import Handover

# A browser sends nothing on a stream. What comes is a pipelined request or a mistake.
MAX_RECEIVED = 64 * 1024  # bytes


class SSE(Engine):
    name = "sse"

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.is_raw = bool(options.get("raw"))
        self.event = options.get("event")
        sse.encode_event(b"", event=self.event)
        self.heartbeat = heartbeat_of(options)
        low, high = options.get("retry", RETRY)
        self.retry = float(low), float(high)
        self.encoding = ("sse", self.is_raw, self.event)

    def open(self, connection: Connection, handover: Handover, cursor: str | None) -> None:
        # The stream ends with the connection: chunks would only add bytes to every event.
        first = self._retry()
        if cursor is not None and not self.is_raw:
            first += sse.encode_id(cursor)
        connection.send(handover.head + b"Connection: close\r\n\r\n" + first)

    def encode(self, message: Message) -> bytes:
        if message.reset is not None:
            return self.reset([message.channel], message.reset)
        if self.is_raw:
            return message.data
        cursor = message.stamp.cursor if message.stamp else None
        event = message.event or self.event
        try:
            return sse.encode_event(message.data, event=event, id=cursor)
        except ValueError:  # an event name of several lines, from a publisher that is not ours
            return sse.encode_event(message.data, event=self.event, id=cursor)

    def beat(self, cursor: str | None = None) -> bytes:
        return sse.COMMENT if cursor is None or self.is_raw else sse.encode_id(cursor)

    def reset(self, channels: Iterable[str], reason: str, cursor: str | None = None) -> bytes:
        if self.is_raw:
            return b""  # the events, and their ids, are the publisher's own
        data = json.dumps({"channels": list(channels), "reason": reason}, ensure_ascii=False).encode()
        return sse.encode_event(data, event="reset", id=cursor)

    def goodbye(self) -> bytes:
        return self._retry()

    def received(self, connection: Connection, data: bytes) -> None:
        if connection.received > MAX_RECEIVED:
            connection.hub.close(connection, f"the client sent more than {MAX_RECEIVED} bytes")

    def _retry(self) -> bytes:
        return sse.encode_retry(random.uniform(*self.retry))


ENGINE = SSE
