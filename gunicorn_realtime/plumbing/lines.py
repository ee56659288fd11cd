"""The lines between arbiter, workers and hubs: made by the arbiter before it forks, inherited by all.

They have no names, so there is nothing to connect to and nothing to forge; and what is queued on
a line while a dead hub is being replaced is taken by the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import sys
import tempfile
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import OffloadRefused
from .frames import MAX_FRAME_SIZE, Frame

# How long a worker's thread waits while a hub's queue is full, before it refuses the client.
SEND_TIMEOUT = 1.5  # seconds

# Room for some 1,600 handovers of 600 bytes while a hub is being replaced.
QUEUE_SIZE = 1024 * 1024  # bytes

EVENT_WAIT = 0.5  # seconds

DRAIN = b"d"

SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>; the superuser's way past net.core.wmem_max

POLL_INTERVAL = 0.01  # seconds between two looks at a lock that another process holds


@dataclass(slots=True)
class Line:
    """What leads to one hub.

    Args:
        hand_worker, hand_hub: The ends of the pair that carries handovers.
        lifeline_hub, lifeline_arbiter: Ends of a pipe. DRAIN in it asks the hub to drain; only the
            arbiter holds the write end, so its end of file says that the arbiter is gone.
        lock_path: A file that the hub keeps locked (flock) as long as it lives.
        lock: The arbiter's own descriptor of that file, to learn when the hub is gone.
        is_stuck: The queue stayed full for a whole SEND_TIMEOUT: nobody waits for it again until
            there is room, so that a hub that hangs does not take the threads of the site.
    """

    index: int
    hand_worker: socket.socket
    hand_hub: socket.socket
    lifeline_hub: int
    lifeline_arbiter: int
    lock_path: str
    lock: int
    is_stuck: bool = False

    def send(self, frame: Frame, fds: Iterable[int] = ()) -> None:
        """Send one frame to the hub, from a worker.

        Raises:
            OffloadRefused: The queue stayed full, or too many descriptors are in flight.
        """
        data = frame.encode()
        # Not socket.send_fds: it takes flags and forgets them.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
        try:
            self.hand_worker.sendmsg([data], rights, socket.MSG_DONTWAIT if self.is_stuck else 0)
            self.is_stuck = False
        except BlockingIOError:
            self.is_stuck = True
            raise OffloadRefused(f"the queue of hub {self.index} is full") from None
        except OSError as exc:
            raise OffloadRefused(f"hub {self.index} cannot be reached: {exc}") from exc


class Lines:
    """All lines of one arbiter, and the runtime directory with the hubs' locks.

    Args:
        hubs: How many hubs there are.
        uid, gid: Who the workers will be; the directory is theirs.
    """

    def __init__(self, hubs: int, uid: int, gid: int) -> None:
        self.arbiter_pid = os.getpid()
        self.directory = tempfile.mkdtemp(prefix="gunicorn-realtime-")
        self.back_worker, self.back_hub = _pair()
        self.events_worker, self.events_hub = _pair()
        # Event threads look up so often from waiting, to see whether their worker stops.
        self.events_worker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(EVENT_WAIT))
        self.lines = [self._make_line(index) for index in range(hubs)]
        self._turn = 0
        if os.geteuid() == 0:
            for path in [self.directory, *(line.lock_path for line in self.lines)]:
                os.chown(path, uid, gid)

    def _make_line(self, index: int) -> Line:
        hand_worker, hand_hub = _pair()
        hand_worker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_TIMEOUT))
        lifeline_hub, lifeline_arbiter = os.pipe()
        lock_path = os.path.join(self.directory, f"hub-{index}.lock")
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        return Line(index, hand_worker, hand_hub, lifeline_hub, lifeline_arbiter, lock_path, lock)

    # In a worker.

    def become_worker(self) -> None:
        """Give up what only the arbiter may hold; called in each worker after the fork."""
        for line in self.lines:
            os.close(line.lifeline_arbiter)

    def send(self, frame: Frame, fds: Iterable[int] = (), hub: int | None = None) -> None:
        """Send a frame to one of the hubs, in turn, or to the one that is named.

        Raises:
            OffloadRefused: gunicorn is stopping, or every hub's queue stayed full, or that of the one.
        """
        if self.stopping:
            raise OffloadRefused("gunicorn is stopping")
        if hub is not None and hub < len(self.lines):
            self.lines[hub].send(frame, fds)
            return
        self._turn += 1
        turn = self._turn % len(self.lines)
        in_turn = self.lines[turn:] + self.lines[:turn]
        in_turn.sort(key=lambda line: line.is_stuck)
        for line in in_turn[:-1]:
            try:
                line.send(frame, fds)
                return
            except OffloadRefused:
                pass  # another hub may have room
        in_turn[-1].send(frame, fds)

    @property
    def stopping(self) -> bool:
        return os.path.exists(self._stopping_path)

    @property
    def _stopping_path(self) -> str:
        return os.path.join(self.directory, "stopping")

    # In the arbiter.

    def drain_hubs(self) -> None:
        """Ask every hub to drain; workers neither start a new one nor hand over from now on."""
        if self.stopping:
            return
        self._say_stopping()
        for line in self.lines:
            with contextlib.suppress(OSError):
                os.write(line.lifeline_arbiter, DRAIN)

    def _say_stopping(self) -> None:
        with contextlib.suppress(OSError):
            os.close(os.open(self._stopping_path, os.O_CREAT | os.O_WRONLY, 0o644))

    def wait_for_hubs(self, timeout: float) -> bool:
        """Wait until every hub is gone; return whether they are."""
        deadline = time.monotonic() + timeout
        return all(_wait_for_lock(line.lock, deadline) for line in self.lines)

    def close(self, timeout: float) -> None:
        """End what is left, at the arbiter's exit: hubs that have not been drained don't wait for anybody."""
        self._say_stopping()
        for line in self.lines:
            os.close(line.lifeline_arbiter)
        self.wait_for_hubs(timeout)
        shutil.rmtree(self.directory, ignore_errors=True)


def _wait_for_lock(lock: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_INTERVAL)


def _pair() -> tuple[socket.socket, socket.socket]:
    # SEQPACKET keeps messages whole whoever writes; macOS lacks it and has DATAGRAM.
    kind = socket.SOCK_DGRAM if sys.platform == "darwin" else socket.SOCK_SEQPACKET
    pair = socket.socketpair(socket.AF_UNIX, kind)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_SIZE)
        if sys.platform == "linux":
            with contextlib.suppress(PermissionError):
                end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, QUEUE_SIZE)
    return pair


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Read one message and the descriptors that came with it; they are not inherited by children.

    Raises:
        BlockingIOError: There is none.
        OffloadRefused: It was cut, as happens to a receiver without free descriptors.
    """
    # Not socket.recv_fds: it takes flags and forgets them.
    room = socket.CMSG_LEN(array("i").itemsize)
    cloexec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, ancillary, flags, _ = sock.recvmsg(MAX_FRAME_SIZE, room, cloexec)
    fds = array("i")
    for _level, _type, rights in ancillary:  # nothing but SCM_RIGHTS comes here
        fds.frombytes(rights)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise OffloadRefused("a handover was cut: no descriptor is free")
    return data, list(fds)
