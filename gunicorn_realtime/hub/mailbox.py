"""What waits for a client of Engine.IO that polls: the other end of its connection's socket pair."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..protocols import websocket
from ..protocols.websocket import Opcode
from .connection import READ

if TYPE_CHECKING:
    from .process import Hub

# What waits in the kernel; beyond that a client lags.
MAILBOX_SIZE = 64 * 1024  # bytes

# One answer has so much at most, or one message.
MAX_ANSWER_SIZE = 256 * 1024  # bytes


class Mailbox:
    """What waits for a client that polls.

    Args:
        hub: Whose it is.
        filled: Called when there is something in it, while it is watched.

    Attributes:
        slot: The descriptor that what is sent is written to, which the connection owns.
    """

    __slots__ = ("_buffer", "_fd", "_filled", "_watcher", "is_at_end", "slot")

    def __init__(self, hub: Hub, filled: Callable[[], None]) -> None:
        inside, outside = socket.socketpair()
        outside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAILBOX_SIZE)
        self._fd = inside.detach()
        self.slot = outside.detach()
        os.set_blocking(self._fd, False)
        os.set_blocking(self.slot, False)
        self._filled = filled
        self._buffer = bytearray()
        self._watcher: Any = hub.loop.io(self._fd, READ)
        self.is_at_end = False

    def watch(self) -> None:
        if self._fd >= 0:
            self._watcher.start(self._filled)

    def stop_watching(self) -> None:
        self._watcher.stop()

    def take(self) -> list[tuple[bytes, bool]]:
        """Return messages, and whether they are binary: what is there, as far as one answer takes it."""
        frames: list[tuple[int, bytes]] = []
        size = 0
        while not frames or size < MAX_ANSWER_SIZE:
            taken, end = websocket.split_frames(self._buffer)
            del self._buffer[:end]
            size += end
            frames += taken
            if not self._read():
                break
        return [
            (data, opcode == Opcode.BINARY)
            for opcode, data in frames
            if opcode in (Opcode.TEXT, Opcode.BINARY)
        ]

    def drain(self) -> bytes:
        """Return all that is left, as it was written."""
        while self._read():
            pass
        return bytes(self._buffer)

    def close(self) -> None:
        if self._fd >= 0:
            self._watcher.stop()
            self._watcher.close()
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> bool:
        """Read some; return whether there was any."""
        if self._fd < 0:
            return False
        try:
            data = os.read(self._fd, MAILBOX_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._buffer += data
        self.is_at_end = not data
        return bool(data)
