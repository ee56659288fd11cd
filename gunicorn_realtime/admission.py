"""Who waits when many streams want to begin at once: the streams, and not the site's pages.

When a hub has gone, or the network has been away, thousands of clients return together. Each costs a
whole request, so a site whose threads they take would answer nobody else for seconds.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from typing import Any

# How the two protocols say so that a browser speaks: EventSource and WebSocket.
STREAM_FIELD = re.compile(
    rb"\r\n(?:accept:[^\r\n]*\btext/event-stream|upgrade:[^\r\n]*\bwebsocket)\b", re.IGNORECASE
)
ORIGIN_FIELD = re.compile(rb"\r\norigin:", re.IGNORECASE)


class Admission:
    """Lets so many requests for streams into the threads at once, the others in their order.

    Args:
        at_once: Requests for streams that may have a thread.
        most_waiting: Those that may wait for one.
    """

    def __init__(self, at_once: int, most_waiting: int) -> None:
        self._at_once = at_once
        self._most_waiting = most_waiting
        self._inside: set[Any] = set()
        self._waiting: deque[Any] = deque()
        self._lock = threading.Lock()

    def is_full(self) -> bool:
        return len(self._waiting) >= self._most_waiting

    def enter(self, conn: Any) -> bool:
        """Return whether a connection may have a thread now; if not, it comes out of `leave` later."""
        with self._lock:
            if len(self._inside) >= self._at_once:
                self._waiting.append(conn)
                return False
            self._inside.add(conn)
            return True

    def leave(self, conn: Any) -> Any:
        """Note that a connection's request has been served; return whose turn it is, or None."""
        with self._lock:
            if conn not in self._inside:
                return None
            self._inside.remove(conn)
            if not self._waiting:
                return None
            following = self._waiting.popleft()
            self._inside.add(following)
            return following


def engine_asked_for(head: bytes | bytearray) -> str | None:
    """Return "sse" or "websocket" if that is what a request's head asks for."""
    found = STREAM_FIELD.search(head)
    if found is None:
        return None
    return "sse" if found[0].lower().startswith(b"\r\naccept:") else "websocket"


def may_refuse(engine: str, head: bytes | bytearray) -> bool:
    """Tell whether a client that is refused now comes back.

    An EventSource of another origin does not, unless the answer has the headers by which the site
    allows it, which only the site knows.
    """
    return engine != "sse" or ORIGIN_FIELD.search(head) is None
