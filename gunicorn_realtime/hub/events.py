"""What happens to connections, told to their applications: see `plumbing.events` for the calls.

A connection's events are called for one at a time and in order. A hub has a number of calls under way
at most, whatever the number of connections; the others wait for their turn.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from ..errors import ProtocolError, TooLarge
from ..plumbing.events import Answer, AnswerReader, Event, EventCall, EventKind, Outcome
from ..plumbing.offload import Events
from ..protocols.websocket_close import CloseCode
from .connection import READ, WRITE

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger(__name__)

# More than all event threads of a machine take at a time; each holds a descriptor.
MAX_RUNNING = 64

# While so much of a client waits for the application, the client is not read.
MAX_PENDING = 16
MAX_PENDING_SIZE = 256 * 1024  # bytes

READ_SIZE = 64 * 1024  # bytes

# What stands in the way of another descriptor in flight, and passes.
IS_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE)
RETRY_INTERVAL = 0.02  # seconds


class Dialogue:
    """What one connection tells its application. It outlives the connection until the last is told.

    Args:
        calls: The hub's.
        connection: Whose it is.
        events: What the application wants to know.
        environ: Of the request that opened the connection.
    """

    __slots__ = (
        "calls",
        "code",
        "connection",
        "environ",
        "events",
        "is_retried",
        "pending",
        "size",
        "state",
    )

    def __init__(self, calls: EventCalls, connection: Connection, events: Events, environ: str) -> None:
        self.calls = calls
        self.connection: Connection | None = connection
        self.events = events
        self.environ = environ
        self.state = events.state
        self.code = int(CloseCode.ABNORMAL_CLOSURE)  # how it ends, unless somebody says it better
        self.pending: deque[Event] = deque()  # the first is being called for
        self.size = 0  # bytes of their data
        self.is_retried = False

    def tell(self, event: Event) -> None:
        """Call the application for an event, after those that came before."""
        if event.kind not in self.events.kinds:
            return
        self.pending.append(event)
        self.size += len(event.data)
        if len(self.pending) == 1:
            self.calls.add(self)
        elif self.connection is not None and self._is_full:
            self.connection.stop_reading()

    def close(self) -> None:
        """The connection is gone."""
        self.connection = None
        self.tell(Event(EventKind.CLOSED, code=self.code))

    def take(self, answer: Answer) -> None:
        """Do what the application wants after an event."""
        self.is_retried = False
        self._finish_first()
        if answer.state is not None:
            self.state = answer.state
        match answer.outcome:
            case Outcome.DONE:
                if self.connection is not None:
                    self.connection.hub.apply(self.connection, answer.effects)
            case Outcome.REFUSED:
                self._end(CloseCode.POLICY_VIOLATION, "the application refused it")
            case Outcome.FAILED:
                self._end(CloseCode.INTERNAL_ERROR, "the application failed")
        self._go_on()

    def fail(self, reason: str) -> None:
        """There is no answer."""
        logger.warning("An event call failed: %s", reason)
        self.is_retried = False
        self._finish_first()
        self._end(CloseCode.INTERNAL_ERROR, reason)
        self._go_on()

    def _finish_first(self) -> None:
        self.size -= len(self.pending.popleft().data)

    def _go_on(self) -> None:
        if self.pending:
            self.calls.add(self)
        connection = self.connection
        if connection is not None and not self._is_full and not connection.is_read:
            connection.read_on()

    @property
    def _is_full(self) -> bool:
        return len(self.pending) > MAX_PENDING or self.size > MAX_PENDING_SIZE

    def _end(self, code: CloseCode, reason: str) -> None:
        """End the connection; what else it has sent is not told."""
        for event in [event for event in self.pending if event.kind is not EventKind.CLOSED]:
            self.pending.remove(event)
        self.size = 0
        if self.connection is not None:
            self.connection.audience.engine.disconnect(self.connection, code, reason)


class Call:
    """One event on its way to an event thread and back.

    Raises:
        OSError: It cannot be sent now.
        TooLarge: It can never be.
    """

    __slots__ = ("calls", "dialogue", "fd", "reader", "timer", "unsent", "watchers")

    def __init__(self, calls: EventCalls, dialogue: Dialogue) -> None:
        self.calls = calls
        self.dialogue = dialogue
        event = dialogue.pending[0]
        event.state = dialogue.state
        frame = EventCall(event, dialogue.environ, len(event.data)).frame().encode()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(calls.line, [frame], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        self.fd = ours.detach()
        self.reader = AnswerReader()
        self.timer: Any = None
        self.unsent = memoryview(event.data)
        loop = calls.loop
        self.watchers = [loop.io(self.fd, READ), loop.io(self.fd, WRITE)]
        self.watchers[0].start(self._on_readable)
        if event.data:
            self.watchers[1].start(self._on_writable)

    def _on_writable(self) -> None:
        try:
            self.unsent = self.unsent[os.write(self.fd, self.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self.unsent = self.unsent[:0]  # the thread is gone, as the reader will see
        if not self.unsent:
            self.watchers[1].stop()

    def _on_readable(self) -> None:
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._died()
            return
        try:
            self.reader.feed(data)
        except ProtocolError as exc:
            self.end()
            self.dialogue.fail(str(exc))
            return
        if self.reader.answer is not None:
            self.end()
            self.dialogue.take(self.reader.answer)
        elif self.reader.is_begun and self.timer is None:
            self.timer = self.calls.loop.timer(self.dialogue.events.timeout)
            self.timer.start(self._on_timeout)

    def _died(self) -> None:
        self.end()
        dialogue = self.dialogue
        if self.reader.is_begun or dialogue.is_retried:
            dialogue.fail("its worker has died")
        else:
            dialogue.is_retried = True
            self.calls.add(dialogue)

    def _on_timeout(self) -> None:
        self.end()
        self.dialogue.fail(f"it took longer than {self.dialogue.events.timeout:g} s")

    def end(self) -> None:
        for watcher in self.watchers:
            watcher.stop()
            watcher.close()
        if self.timer is not None:
            self.timer.stop()
            self.timer.close()
        os.close(self.fd)
        self.calls.ended(self)


class EventCalls:
    """A hub's calls of its applications.

    Args:
        loop: gevent's.
        line: The hub's end of the pair that leads to the event threads of all workers.
    """

    def __init__(self, loop: Any, line: Any) -> None:
        self.loop = loop
        self.line = line
        self._ready: deque[Dialogue] = deque()  # their first event waits to be sent
        self._running: set[Call] = set()
        self._retry_timer = loop.timer(RETRY_INTERVAL)
        self._is_sending = False

    @property
    def is_busy(self) -> bool:
        return bool(self._ready or self._running)

    def add(self, dialogue: Dialogue) -> None:
        """Call for a dialogue's first event when it is its turn."""
        self._ready.append(dialogue)
        self._send()

    def ended(self, call: Call) -> None:
        self._running.discard(call)
        if self._ready:
            self.loop.run_callback(self._send)

    def close(self) -> None:
        """Send nothing more; what is under way gets no answer."""
        for call in list(self._running):
            call.end()
        self._ready.clear()
        self._retry_timer.stop()
        self._retry_timer.close()
        self.line.close()

    def _send(self) -> None:
        if self._is_sending:
            return  # a call that failed at once made room for the next
        self._is_sending = True
        try:
            self._send_ready()
        finally:
            self._is_sending = False

    def _send_ready(self) -> None:
        while self._ready and len(self._running) < MAX_RUNNING:
            dialogue = self._ready.popleft()
            try:
                self._running.add(Call(self, dialogue))
            except TooLarge as exc:
                dialogue.fail(str(exc))
            except OSError as exc:
                if exc.errno not in IS_FULL:
                    dialogue.fail(f"it could not be sent: {exc}")
                    continue
                self._ready.appendleft(dialogue)
                self._retry_timer.start(self._send)
                return
