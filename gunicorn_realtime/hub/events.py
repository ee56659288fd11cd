"""What happens to connections, told to their applications: see `plumbing.events` for the calls.

A connection's events are called for one at a time and in order. A hub has a number of calls under way
at most, whatever the number of connections; the others wait for their turn.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from ..errors import ProtocolError, TooLarge
from ..plumbing.events import Answer, AnswerReader, Effect, Event, EventCall, EventKind, Outcome
from ..plumbing.offload import Events
from ..protocols.websocket_close import CloseCode
from .connection import READ, WRITE
from .feed import OVERHEAD

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger(__name__)

# More than all event threads of a machine take at a time; each holds a descriptor.
MAX_RUNNING = 64

# While so much of a client waits for the application, the client is not read.
MAX_PENDING = 16
MAX_PENDING_SIZE = 256 * 1024  # bytes

# ... and while so much of all clients waits, also of those who have left: nobody's messages are taken.
MAX_SIZE = 32 * 1024 * 1024  # bytes

# A hub says in the log that nobody takes its calls.
LONG_WAIT = 10.0  # seconds

READ_SIZE = 64 * 1024  # bytes

# What stands in the way of another descriptor in flight, and passes.
IS_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE)
RETRY_INTERVAL = 0.02  # seconds


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an event was not handled; `outcome` is None if there was no answer."""

    outcome: Outcome | None
    code: CloseCode
    reason: str


class Dialogue:
    """What one connection tells its application. It outlives the connection until the last is told.

    Args:
        calls: The hub's.
        connection: Whose it is.
        wanted: What the application wants to know.
        environ: Of the request that opened the connection.
    """

    __slots__ = (
        "calls",
        "code",
        "connection",
        "environ",
        "following",
        "hub",
        "is_called",
        "is_opened",
        "is_retried",
        "pending",
        "size",
        "state",
        "wanted",
    )

    def __init__(self, calls: EventCalls, connection: Connection, wanted: Events, environ: str) -> None:
        self.calls = calls
        self.connection: Connection | None = connection
        self.hub = connection.hub
        self.following = connection.audience.following
        self.wanted = wanted
        self.environ = environ
        self.state = wanted.state
        self.code = int(CloseCode.ABNORMAL_CLOSURE)  # how it ends, unless somebody says it better
        self.pending: deque[Event] = deque()  # while `is_called`, the first is being called for
        self.size = 0  # bytes that they take
        self.is_called = False
        self.is_opened = False
        self.is_retried = False

    def tell(self, event: Event) -> None:
        """Call the application for an event, after those that came before."""
        self.is_opened = self.is_opened or event.kind is EventKind.OPENED
        if event.kind not in self.wanted.kinds:
            return
        self.pending.append(event)
        self._count(_cost(event))
        self._call_next()
        if self.is_full and self.connection is not None:
            self.connection.stop_reading()

    def close(self, events: Iterable[Event]) -> None:
        """The connection is gone; these events are told last."""
        self.connection = None
        self.calls.held.discard(self)
        if self.is_opened or EventKind.OPENED not in self.wanted.kinds:  # who hears of one hears of both
            for event in events:
                self.tell(event)

    def take(self, answer: Answer) -> None:
        """Do what the application wants after an event."""
        if answer.state is not None:
            self.state = answer.state
        match answer.outcome:
            case Outcome.DONE:
                self._finish(answer.effects)
            case Outcome.REFUSED:
                failure = Failure(answer.outcome, CloseCode.POLICY_VIOLATION, "the application refused it")
                self._finish(failure=failure)
            case Outcome.FAILED:
                failure = Failure(answer.outcome, CloseCode.INTERNAL_ERROR, "the application failed")
                self._finish(failure=failure)
            case _:
                assert_never(answer.outcome)

    def fail(self, reason: str) -> None:
        """There is no answer."""
        address = "-" if self.connection is None else self.connection.address or "a proxy"
        logger.warning("An event call for a connection from %s failed: %s", address, reason)
        self._finish(failure=Failure(None, CloseCode.INTERNAL_ERROR, reason))

    def go_on_reading(self) -> None:
        """Read the client again, if it is not read because of us and there is room."""
        connection = self.connection
        if connection is None or connection.is_read:
            return
        if self.calls.is_full:
            self.calls.held.add(self)
        elif not self.is_full:
            connection.read_on()

    @property
    def is_busy(self) -> bool:
        """The application has not handled all that it is to be told."""
        return bool(self.pending)

    @property
    def is_full(self) -> bool:
        return len(self.pending) > MAX_PENDING or self.size > MAX_PENDING_SIZE or self.calls.is_full

    def _call_next(self) -> None:
        if self.pending and not self.is_called:
            self.is_called = True
            self.calls.add(self)

    def _finish(self, effects: Iterable[Effect] = (), failure: Failure | None = None) -> None:
        """The first event has been called for: do what follows from it, and go on with the next."""
        self.is_retried = False
        event = self.pending.popleft()
        self._count(-_cost(event))
        try:
            if failure is not None:
                self._fail(event, failure)
            elif self.connection is not None:
                self.connection.hub.effects.apply(self.connection, effects)
            else:
                self.hub.effects.publish(self.following, effects)
        except Exception:  # nobody else's events may be stuck because of it
            logger.exception("What an application wanted could not be done")
            self._end(CloseCode.INTERNAL_ERROR, "it could not be done")
        finally:
            self.is_called = False
        self._call_next()
        self.go_on_reading()
        if self.connection is not None and not self.is_busy:
            self.connection.audience.engine.handled(self.connection)

    def _fail(self, event: Event, failure: Failure) -> None:
        """The application has not handled an event; its engine knows what that means."""
        if self.connection is not None:
            engine = self.connection.audience.engine
            engine.failed(self.connection, event, failure.outcome, failure.code, failure.reason)
        if self.connection is None or self.connection.is_over:
            self._drop_pending()

    def _end(self, code: CloseCode, reason: str) -> None:
        """End the connection; what else it has sent is not told."""
        self._drop_pending()
        if self.connection is not None:
            self.connection.audience.engine.disconnect(self.connection, code, reason)

    def _drop_pending(self) -> None:
        self._count(-sum(map(_cost, self.pending)))
        self.pending = deque(event for event in self.pending if event.kind is EventKind.CLOSED)
        self._count(sum(map(_cost, self.pending)))

    def _count(self, size: int) -> None:
        self.size += size
        self.calls.count(size)


def _cost(event: Event) -> int:
    """Return what an event takes while it waits, in bytes: also empty ones add up."""
    return len(event.data) + OVERHEAD


class Call:
    """One event on its way to an event thread and back.

    Raises:
        OSError: It cannot be sent now.
        TooLarge: It can never be.
    """

    __slots__ = ("calls", "dialogue", "fd", "reader", "sent", "timer", "unsent", "watchers")

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
        self.sent = time.monotonic()
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
            self.timer = self.calls.loop.timer(self.dialogue.wanted.timeout)
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
        self.dialogue.fail(f"it took longer than {self.dialogue.wanted.timeout:g} s")

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
        self.size = 0  # bytes that all waiting events take
        self.held: set[Dialogue] = set()  # those whose clients are not read until there is room again
        self._ready: deque[Dialogue] = deque()  # their first event waits to be sent
        self._running: set[Call] = set()
        self._retry_timer: Any = None  # while the line is full
        self._is_sending = False
        self._warned = -math.inf

    @property
    def is_busy(self) -> bool:
        return bool(self._ready or self._running)

    @property
    def is_full(self) -> bool:
        """So much waits for applications that nothing more should come."""
        return self.size > MAX_SIZE

    def count(self, size: int) -> None:
        """Note that so many bytes more wait, or fewer."""
        self.size += size
        if self.held and self.size <= MAX_SIZE // 2:
            held, self.held = self.held, set()
            for dialogue in held:
                self.loop.run_callback(dialogue.go_on_reading)

    def add(self, dialogue: Dialogue) -> None:
        """Call for a dialogue's first event when it is its turn."""
        self._ready.append(dialogue)
        self._send()

    def ended(self, call: Call) -> None:
        self._running.discard(call)
        if self._ready:
            self.loop.run_callback(self._send)

    def warn(self, now: float) -> None:
        """Say in the log, once a minute, that nobody takes the calls."""
        waiting = [call.sent for call in self._running if not call.reader.is_begun]
        if waiting and now - min(waiting) > LONG_WAIT and now - self._warned > 60:
            self._warned = now
            logger.warning(
                "What clients sent has waited for %.0f s: all event threads are busy, or handlers hang. "
                "GUNICORN_REALTIME_EVENT_THREADS is their number in each worker",
                now - min(waiting),
            )

    def close(self) -> None:
        """Send nothing more; what is under way gets no answer."""
        for call in list(self._running):
            call.end()
        self._ready.clear()
        self._stop_retrying()
        self.line.close()

    def _send(self) -> None:
        if self._is_sending or self._retry_timer is not None:
            return  # a call that failed at once made room for the next; or the line is full
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
                # A new one each time: one that has fired would fire at once when it is started again.
                self._retry_timer = self.loop.timer(RETRY_INTERVAL)
                self._retry_timer.start(self._retry)
                return

    def _retry(self) -> None:
        self._stop_retrying()
        self._send()

    def _stop_retrying(self) -> None:
        if self._retry_timer is not None:
            self._retry_timer.stop()
            self._retry_timer.close()
            self._retry_timer = None
