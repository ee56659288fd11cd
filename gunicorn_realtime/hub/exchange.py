"""One HTTP request that a hub answers itself, after which the connection goes back to a worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from ..errors import ProtocolError
from ..protocols.http_body import BodyReader
from .connection import READ, READ_SIZE, WRITE, shut_down

if TYPE_CHECKING:
    from ..plumbing.handover import Handover
    from .process import Hub

# For the rest of a body, or for a client to take its answer.
TIMEOUT = 30.0  # seconds

# A client may send its next request behind this one, which goes back with the connection.
MAX_REST_SIZE = 64 * 1024  # bytes

# How long a client may take to close its side of a connection that we end before it has sent all.
CLOSE_TIMEOUT = 2.0  # seconds

# Of a response's head the answer has its own.
OWN_FIELDS = (b"content-type", b"content-length", b"transfer-encoding", b"connection")


class Exchange:
    """A request and its answer.

    Args:
        hub: Whose it is.
        fd: The client's socket.
        handover: What came with it.
        left: Called if the client leaves before it is answered.
    """

    __slots__ = (
        "_is_closing",
        "_reader",
        "_rest",
        "_timer",
        "_unsent",
        "_writer",
        "body",
        "done",
        "fd",
        "handover",
        "hub",
        "left",
    )

    def __init__(self, hub: Hub, fd: int, handover: Handover, left: Callable[[], None]) -> None:
        os.set_blocking(fd, False)
        self.hub = hub
        self.fd = fd
        self.handover = handover
        self.left = left
        self.body: BodyReader | None = None
        self.done: Callable[[ProtocolError | None], None] | None = None
        self._is_closing = False
        self._rest = handover.rest
        self._unsent = memoryview(b"")
        self._writer: Any = None
        self._timer: Any = None
        self._reader: Any = hub.loop.io(fd, READ)
        self._reader.start(self._on_readable)
        hub.exchanges.add(self)

    def read_body(
        self, length: int | None, max_size: int, done: Callable[[ProtocolError | None], None]
    ) -> None:
        """Read the request's body, then call `done`: `body` has it, unless that is given an error."""
        rest, self._rest = self._rest, b""
        self.done = done
        try:
            self.body = BodyReader(length, max_size)
        except ProtocolError as exc:
            self._end_body(exc)
            return
        self._wait_for_client(TIMEOUT)
        self._feed(rest)

    @property
    def is_read(self) -> bool:
        """Its body has come."""
        return self.body is not None and self.body.is_complete

    def answer(self, status: str, fields: bytes, content_type: str, body: bytes) -> None:
        """Answer the request, and let the connection go back, or end if it may not.

        Args:
            status: As in the status line.
            fields: More header fields, each ended by a line break.
        """
        if self.fd < 0:
            return
        self._stop_waiting()
        head = self.handover.head
        version = head.partition(b" ")[0]
        lines = fields_of(head, without=OWN_FIELDS) + fields
        if not self.handover.keep_alive:
            lines += b"Connection: close\r\n"
        self._unsent = memoryview(
            b"%b %b\r\n%bContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (version, status.encode(), lines, content_type.encode(), len(body), body)
        )
        self._write()

    def close(self) -> None:
        """End the connection."""
        if self.fd >= 0:
            os.close(self._release())

    def _on_readable(self) -> None:
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self.left()
        elif self._is_closing:
            pass
        elif self.body is not None and not self.body.is_complete:
            self._feed(data)
        else:
            self._rest += data
            if len(self._rest) > MAX_REST_SIZE:
                self.close()
                self.left()

    def _feed(self, data: bytes) -> None:
        assert self.body is not None
        try:
            self.body.feed(data)
        except ProtocolError as exc:
            self._end_body(exc)
            return
        if self.body.is_complete:
            self._rest = self.body.rest
            self._stop_waiting()
            self._end_body(None)

    def _end_body(self, error: ProtocolError | None) -> None:
        done, self.done = self.done, None
        assert done is not None
        done(error)

    def _write(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self.fd, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            self.left()
            return
        if not self._unsent:
            self._finish()
        elif self._writer is None:
            self._writer = self.hub.loop.io(self.fd, WRITE)
            self._writer.start(self._write)
            self._wait_for_client(TIMEOUT)

    def _finish(self) -> None:
        """The answer is with the kernel."""
        if self.body is not None and not self.body.is_complete:
            # What is still to come would be taken for the next request, and a close now would reset the answer.
            self._end_connection()
        elif self.handover.keep_alive:
            rest = self._rest
            self.hub.give_back(self._release(), self.handover, rest)
        else:
            self.close()

    def _end_connection(self) -> None:
        self._is_closing = True
        self.left = _nothing
        shut_down(self.fd)
        if self._writer is not None:
            self._writer.stop()
        self._wait_for_client(CLOSE_TIMEOUT)

    def _wait_for_client(self, timeout: float) -> None:
        self._stop_waiting()
        self._timer = self.hub.loop.timer(timeout)
        self._timer.start(self._on_timeout)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _on_timeout(self) -> None:
        self.close()
        self.left()

    def _release(self) -> int:
        self._stop_waiting()
        for watcher in (self._reader, self._writer):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self.hub.exchanges.discard(self)
        fd, self.fd = self.fd, -1
        return fd


def fields_of(head: bytes, *, without: Collection[bytes]) -> bytes:
    """Return the header fields of a response but some, each ended by a line break."""
    kept = []
    for line in head.split(b"\r\n")[1:]:
        if line and line.partition(b":")[0].lower() not in without:
            kept.append(line + b"\r\n")
    return b"".join(kept)


def _nothing() -> None:
    pass
