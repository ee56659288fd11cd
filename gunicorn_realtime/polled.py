"""What a worker waits for on its poller, so that no thread does: heads of requests, and clients that close."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

# gunicorn's TConn: its versions differ in what it has, and no one's stubs fit them all.
Conn = Any

HEAD_END = b"\r\n\r\n"
READ_SIZE = 8192  # bytes; gunicorn's own

# How long clients that are sending a head are waited for when the worker stops.
STOP_LINGER = 1.0  # seconds

# How long a client may take to close its side of a connection that has ended; gunicorn's own.
CLOSE_LINGER = 2.0  # seconds
CLOSE_LINGER_SIZE = 64 * 1024  # bytes that it may still send meanwhile


class Awaited:
    """A connection, what has come of it, and until when it is waited for."""

    __slots__ = ("conn", "data", "deadline")

    def __init__(self, conn: Conn, data: bytes, deadline: float) -> None:
        self.conn = conn
        self.data = bytearray(data)
        self.deadline = deadline


class Heads:
    """Reads the heads of requests.

    Args:
        poller: The worker's.
        max_size: Bytes of a head.
        timeout: Seconds that a client may take for one.
        complete: Called with a connection, and what was read of it: a whole head at least.
        drop: Called with a connection that has none, and what it is to be answered.
    """

    def __init__(
        self,
        poller: selectors.BaseSelector,
        max_size: int,
        timeout: float,
        complete: Callable[[Conn, bytes], None],
        drop: Callable[[Conn, bytes], None],
    ) -> None:
        self._poller = poller
        self._max_size = max_size
        self._timeout = timeout
        self._complete = complete
        self._drop = drop
        self._awaited: dict[Awaited, None] = {}  # in the order of their deadlines

    def add(self, conn: Conn, data: bytes) -> None:
        """Wait for a head of which some has been read already."""
        head = Awaited(conn, data, time.monotonic() + self._timeout)
        if HEAD_END in head.data:
            self._complete(conn, data)
            return
        conn.sock.setblocking(False)
        if self._read(head):
            self._awaited[head] = None
            self._poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_readable, head))

    def read_last(self) -> None:
        """Wait for what is on its way, without the worker's loop: that has ended."""
        deadline = time.monotonic() + STOP_LINGER
        with selectors.DefaultSelector() as selector:
            for head in self._awaited:
                selector.register(head.conn.sock, selectors.EVENT_READ, head)
            while self._awaited and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    selector.unregister(key.fileobj)
                    if self._read(key.data):
                        selector.register(key.fileobj, selectors.EVENT_READ, key.data)

    def expire(self, *, is_stopping: bool) -> None:
        """Drop those whose time is over; when the worker stops, that is soon."""
        now = time.monotonic()
        for head in list(self._awaited):
            deadline = head.deadline
            if is_stopping:
                deadline = min(deadline, deadline - self._timeout + STOP_LINGER)
            if deadline > now:
                return
            self._forget(head)
            self._drop(head.conn, _answer(b"408 Request Timeout") if head.data else b"")

    def _on_readable(self, head: Awaited, sock: socket.socket) -> None:
        # It stays registered while the rest of the head is awaited.
        self._read(head)

    def _forget(self, head: Awaited) -> None:
        if head in self._awaited:
            del self._awaited[head]
            self._poller.unregister(head.conn.sock)

    def _read(self, head: Awaited) -> bool:
        """Read what is there; return whether more of the head must be waited for."""
        while True:
            try:
                data = head.conn.sock.recv(READ_SIZE)
            except BlockingIOError:
                return True
            except OSError:
                data = b""
            searched = max(0, len(head.data) - len(HEAD_END) + 1)
            head.data += data
            if not data:
                self._forget(head)
                self._drop(head.conn, b"")
            elif head.data.find(HEAD_END, searched) >= 0:
                self._forget(head)
                self._complete(head.conn, bytes(head.data))
            elif len(head.data) > self._max_size:
                self._forget(head)
                self._drop(head.conn, _answer(b"431 Request Header Fields Too Large"))
            else:
                continue
            return False


class Closing:
    """Closes connections: says that we have ended, and waits for the client to do so.

    gunicorn 26 and newer wait for it in the main loop, where it holds up everybody (RFC 9112,
    section 9.6, wants it: an early close could take the end of the response with it).
    """

    def __init__(self, poller: selectors.BaseSelector) -> None:
        self._poller = poller
        self._awaited: dict[Awaited, None] = {}  # in the order of their deadlines; what comes is dropped
        self._lock = threading.Lock()  # up to gunicorn 23.0 connections are closed by any thread

    def close(self, sock: socket.socket) -> None:
        try:
            sock.shutdown(socket.SHUT_WR)
            sock.setblocking(False)
            closing = Awaited(sock, b"", time.monotonic() + CLOSE_LINGER)
            with self._lock:
                self._poller.register(sock, selectors.EVENT_READ, partial(self._on_readable, closing))
                self._awaited[closing] = None
        except (OSError, ValueError):
            sock.close()  # the client is gone, or the poller is closed

    def expire(self, *, is_stopping: bool) -> None:
        """Wait no longer for those whose time is over; when the worker stops, for nobody."""
        now = time.monotonic()
        for closing in list(self._awaited):
            if closing.deadline > now and not is_stopping:
                return
            self._end(closing)

    def _on_readable(self, closing: Awaited, sock: socket.socket) -> None:
        try:
            data = sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        closing.data += data
        if not data or len(closing.data) > CLOSE_LINGER_SIZE:
            self._end(closing)

    def _end(self, closing: Awaited) -> None:
        with self._lock:
            del self._awaited[closing]
            self._poller.unregister(closing.conn)
        closing.conn.close()


def _answer(status: bytes) -> bytes:
    return b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
