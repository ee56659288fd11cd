"""Threads of a worker that take event calls from hubs, each only while it is free.

They wait on the same socket in all workers, so an event goes to whoever can take it now: pages that
keep all of a worker's other threads busy hold up no event, and events hold up no page.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from .errors import OffloadRefused, ProtocolError, TooLarge
from .plumbing.events import BEGUN, Answer, Event, EventCall, Outcome
from .plumbing.frames import Frame
from .plumbing.lines import receive

# A hub sends and takes at once; one that does not for so long is about to die.
IO_TIMEOUT = 10.0  # seconds


class EventThreads:
    """Takes event calls until its worker stops.

    Args:
        line: The workers' end of the pair that hubs send calls by.
        count: How many calls are under way at a time.
        run: Calls the application for an event, given its request's environ as JSON.
        is_stopping: Says whether the worker takes nothing more.
        log: gunicorn's error log.
    """

    def __init__(
        self,
        line: socket.socket,
        count: int,
        run: Callable[[str, Event], Answer],
        is_stopping: Callable[[], bool],
        log: Any,
    ) -> None:
        self._line = line
        self._run = run
        self._log = log
        self._is_stopping = is_stopping
        self._threads = [
            threading.Thread(target=self._serve, name=f"event-{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float) -> bool:
        """Wait, once the worker stops, for the calls that are under way; return whether all have ended."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        while not self._is_stopping():
            try:
                data, fds = receive(self._line)
            except BlockingIOError:
                continue  # nothing for now
            except OffloadRefused as exc:
                self._log.error("An event was lost: %s", exc)
                continue
            except OSError as exc:
                self._log.error("Events cannot be taken for now: %s", exc)
                time.sleep(1)
                continue
            if not data:
                return  # no hub can send anything more
            try:
                self._answer(data, fds)
            except OSError as exc:
                self._log.warning("A hub wants no answer to an event any more: %s", exc)
            except Exception:
                self._log.exception("An event could not be answered")

    def _answer(self, data: bytes, fds: list[int]) -> None:
        try:
            call = EventCall.from_frame(Frame.decode(data))
        except ProtocolError as exc:
            self._log.error("A hub sent what this worker cannot read: %s", exc)
            for fd in fds:
                os.close(fd)
            return
        with socket.socket(fileno=fds[0]) as end:
            end.settimeout(IO_TIMEOUT)
            end.sendall(BEGUN)  # fails if the hub is gone, and then nothing has happened
            call.event.data = _read(end, call.size)
            end.sendall(self._encode(self._run(call.environ, call.event)))

    def _encode(self, answer: Answer) -> bytes:
        try:
            return answer.encode()
        except TooLarge as exc:
            self._log.error("An event's handler failed: %s", exc)
        except Exception:
            self._log.exception("What an event's handler wants cannot be sent")
        return Answer(Outcome.FAILED).encode()


def _read(end: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = end.recv(min(size - len(data), 1 << 16))
        if not part:
            raise ConnectionResetError("the hub has left")
        data += part
    return bytes(data)
