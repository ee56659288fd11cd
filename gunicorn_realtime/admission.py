"""Who waits when many streams want to begin at once: the streams, and not the site's pages.

When a hub has gone, or the network has been away, thousands of clients return together. Each costs a
whole request, so a site whose threads they take would answer nobody else for seconds.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

# How the two protocols say so that a browser speaks: EventSource and WebSocket.
STREAM_FIELD = re.compile(
    rb"\r\n(?:accept:[^\r\n]*\btext/event-stream|upgrade:[^\r\n]*\bwebsocket)\b", re.IGNORECASE
)
ORIGIN_FIELD = re.compile(rb"\r\norigin:", re.IGNORECASE)


class Admission:
    """Lets so many requests for streams into the threads at once, the others in their order.

    Args:
        start: Gives a connection to a thread; called under a lock, so that nobody is left behind.
        at_once: Requests for streams that may have a thread.
        most_waiting: Those that may wait for one.
    """

    def __init__(self, start: Callable[[Any], object], at_once: int, most_waiting: int) -> None:
        self._start = start
        self._at_once = at_once
        self._most_waiting = most_waiting
        self._inside: set[Any] = set()
        self._waiting: deque[Any] = deque()
        self._lock = threading.Lock()

    def is_full(self) -> bool:
        return len(self._waiting) >= self._most_waiting

    def enter(self, conn: Any) -> None:
        """Start a connection's request, now or when it is its turn."""
        with self._lock:
            self._waiting.append(conn)
            self._let_in()

    def leave(self, conn: Any) -> None:
        """Note that a connection's request has been served, whatever it was for."""
        with self._lock:
            self._inside.discard(conn)
            self._let_in()

    def open_wide(self) -> None:
        """Let all in, and nobody wait from now on."""
        with self._lock:
            self._at_once = sys.maxsize
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting and len(self._inside) < self._at_once:
            conn = self._waiting.popleft()
            self._inside.add(conn)
            self._start(conn)


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
