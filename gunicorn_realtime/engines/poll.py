"""Long polling: the answer is the next message, and the connection stays usable behind it.

Options:
    timeout  seconds after which the answer is empty

Status line and headers leave at once, and what frames the body with the message. The connection
is then handed back to a worker, so the client's next request needs no new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .base import Engine

if TYPE_CHECKING:
    from ..bus.message import Message
    from ..hub.connection import Connection
    from ..plumbing.handover import Handover

# A client may pipeline its next request, which goes back with the connection; but not a body.
MAX_RECEIVED = 64 * 1024  # bytes


class Poll(Engine):
    name = "poll"
    encoding = "poll"
    is_one_shot = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.timeout = float(options.get("timeout", 30.0))
        self.handovers: dict[Connection, Handover] = {}
        self.requests: dict[Connection, bytes] = {}

    def open(self, connection: Connection, handover: Handover, cursor: str | None) -> None:
        self.handovers[connection] = handover
        self.requests[connection] = handover.rest + self.requests.get(connection, b"")
        connection.send(handover.head + (b"" if handover.keep_alive else b"Connection: close\r\n"))

    def encode(self, message: Message) -> bytes:
        return b"Content-Length: %d\r\n\r\n" % len(message.data) + message.data

    def finish(self, connection: Connection) -> None:
        handover, rest = self.handovers[connection], self.requests[connection]
        if not connection.messages:
            try:
                connection.send(b"Content-Length: 0\r\n\r\n")
            except OSError:
                handover = replace(handover, keep_alive=False)
        if handover.keep_alive and connection.lag is None:
            connection.hub.hand_back(connection, handover, rest)
        else:
            connection.hub.close(connection, "answered")

    def goodbye(self) -> bytes:
        return b"Content-Length: 0\r\n\r\n"

    def disconnect(self, connection: Connection, code: int, reason: str) -> None:
        connection.audience.leave(connection)
        if not connection.is_answered:  # else it is about to end
            super().disconnect(connection, code, reason)

    def received(self, connection: Connection, data: bytes) -> None:
        if connection.received > MAX_RECEIVED:
            connection.hub.close(connection, f"the client sent more than {MAX_RECEIVED} bytes")
        else:
            # It may come before the connection is open.
            self.requests[connection] = self.requests.get(connection, b"") + data

    def left(self, connection: Connection) -> None:
        self.handovers.pop(connection, None)
        self.requests.pop(connection, None)


ENGINE = Poll
