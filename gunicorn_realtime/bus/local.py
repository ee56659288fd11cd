"""The local bus: a site's channels without a Redis server.

A small server that speaks RESP on a Unix socket, so that the bus's client is the same as with
Redis, and `redis-cli -s <directory>/bus.sock publish lotofnews hello` works. The processes of a
site share its directory; one of them, whoever holds the lock there, serves the others:

    <directory>/            0700, ours
        bus.lock            locked by the owner; stays when the owner leaves
        bus.sock            replaced by each new owner

It runs on threads. In a process that gevent has patched they are greenlets.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from ..errors import BusUnavailable, ProtocolError
from ..protocols import resp
from .address import BusAddress
from .attendance import Attendances
from .commands import execute
from .history import History
from .message import MAX_HEADER_SIZE

logger = logging.getLogger(__name__)

MAX_MESSAGE_SIZE = 1024 * 1024  # bytes

# What waits for one client. A hub that is busy for a second at 50,000 messages/s of 150 bytes
# stays below it; one that is stuck must not take the owner's memory.
MAX_BACKLOG = 8 * 1024 * 1024  # bytes

# Joined into one send: few calls, and little that is held twice.
SEND_SIZE = 64 * 1024  # bytes
RECEIVE_SIZE = 64 * 1024  # bytes

# sockaddr_un.sun_path on Linux, without its NUL.
MAX_SOCKET_PATH_SIZE = 107  # bytes

# Values are the cursors of consumers: far more than a site has of them, and larger than any.
MAX_VALUES = 1000
MAX_VALUE_SIZE = 1000  # bytes, of a key and its value together

PEER_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid

# In case the socket's path is gone, and a connection to it cannot wake accept().
ACCEPT_TIMEOUT = 1.0
# A thread that is woken ends at once.
JOIN_TIMEOUT = 2.0
# How long a client that has sent too much may take to finish, so that it can read why.
LINGER_TIMEOUT = 1.0


def local_directory(*parts: str) -> str:
    """Return the directory of the local bus that these parts name, the same in every process."""
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return os.path.join(tempfile.gettempdir(), f"realtime-{digest[:16]}")


def own_local_bus(address: BusAddress) -> LocalBus | None:
    """Serve the local bus at `address`, unless another process does already.

    Raises:
        BusUnavailable: Its directory cannot be trusted or used.
    """
    bus = LocalBus(address.directory)
    return bus if bus.try_own() else None


def socket_path(directory: str) -> str:
    """Return the path of the bus's socket.

    Raises:
        BusUnavailable: It is longer than a Unix socket's path can be.
    """
    path = os.path.join(directory, "bus.sock")
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_SIZE:
        raise BusUnavailable(
            f"the local bus's socket {path} has a path of {size} bytes, "
            f"more than the {MAX_SOCKET_PATH_SIZE} of a Unix socket"
        )
    return path


def check_directory(directory: str, *, trusted_uids: Iterable[int]) -> None:
    """Refuse a directory that somebody else could have put there.

    Raises:
        BusUnavailable: It is missing, no directory, open to others, or not owned by `trusted_uids`
            (root may use any).
    """
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        raise BusUnavailable(f"no process serves the local bus: {directory} does not exist") from None
    except OSError as exc:
        raise BusUnavailable(
            f"the local bus's directory {directory} is out of reach: {exc.strerror}"
        ) from exc
    if not stat.S_ISDIR(status.st_mode):
        raise BusUnavailable(f"the local bus's directory {directory} is a symbolic link or no directory")
    if os.geteuid() != 0 and status.st_uid not in trusted_uids:
        raise BusUnavailable(
            f"the local bus's directory {directory} belongs to uid {status.st_uid}, not to {os.geteuid()}"
        )
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise BusUnavailable(f"the local bus's directory {directory} is open to others: {mode:#o}, not 0o700")


class LocalBus:
    """The server, in the process that owns the bus.

    Args:
        directory: Absolute path; made if missing, but not its parents.
        max_message_size: Bytes of the largest message, without its envelope; who sends more is disconnected.
    """

    def __init__(self, directory: str, max_message_size: int = MAX_MESSAGE_SIZE) -> None:
        self.directory = directory
        self.max_message_size = max_message_size
        # Held for one command, so a command is a turn, as in Redis: all clients see the same
        # order. Nothing in a turn waits for a client.
        self.turn = threading.Lock()
        self.clients: set[Client] = set()
        self.subscribers: dict[bytes, set[Client]] = {}
        self.history = History()
        self.values: dict[bytes, bytes] = {}
        self.attendances = Attendances()
        self.started = time.monotonic()
        self._lock_descriptor: int | None = None
        self._listener: socket.socket | None = None
        self._accept_thread: threading.Thread | None = None

    def try_own(self) -> bool:
        """Take the bus and serve it, or return False if another process has it.

        Raises:
            BusUnavailable: The directory cannot be trusted or used.
        """
        if self._listener is not None:
            return True
        path = socket_path(self.directory)
        self.history = History()  # a new owner is a new epoch
        self.values = {}
        self.attendances = Attendances()
        try:
            with suppress(FileExistsError):
                os.mkdir(self.directory, 0o700)
            check_directory(self.directory, trusted_uids=(os.geteuid(),))
            if not self._take_lock():
                return False
            try:
                self._listen(path)
            except BaseException:
                self._release_lock()
                raise
        except OSError as exc:
            reason = exc.strerror or exc
            raise BusUnavailable(f"the local bus cannot be served in {self.directory}: {reason}") from exc
        logger.info("serving the local bus in %s", self.directory)
        return True

    def close(self) -> None:
        """Disconnect all clients and leave the bus to the next owner."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        path = socket_path(self.directory)
        _wake_listener(path)
        if self._accept_thread is not None:
            self._accept_thread.join(JOIN_TIMEOUT)
        listener.close()
        with suppress(FileNotFoundError):
            os.unlink(path)
        with self.turn:
            clients = list(self.clients)
            for client in clients:
                client.drop()
        for client in clients:
            client.join(JOIN_TIMEOUT)
        self._release_lock()

    def subscribe(self, client: Client, channel: bytes) -> None:
        """Let the client receive what is published from the next turn on."""
        self.subscribers.setdefault(channel, set()).add(client)
        client.channels.add(channel)

    def unsubscribe(self, client: Client, channel: bytes) -> None:
        client.channels.discard(channel)
        subscribers = self.subscribers.get(channel, set())
        subscribers.discard(client)
        if not subscribers:
            self.subscribers.pop(channel, None)

    def publish(self, channel: bytes, payload: bytes) -> int:
        """Give a message to the channel's subscribers, in the caller's turn."""
        subscribers = self.subscribers.get(channel)
        if not subscribers:
            return 0
        frame = resp.encode_push(b"message", channel, resp.encode_bulk_string(payload))
        receivers = list(subscribers)
        for client in receivers:
            client.put(frame)
        return len(receivers)

    def set_value(self, key: bytes, value: bytes) -> bool:
        """Keep a value, in the caller's turn; return False if it is too large or there are too many."""
        if len(key) + len(value) > MAX_VALUE_SIZE:
            return False
        if key not in self.values and len(self.values) >= MAX_VALUES:
            return False
        self.values[key] = value
        return True

    def _take_lock(self) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(os.path.join(self.directory, "bus.lock"), flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock_descriptor = descriptor
        return True

    def _release_lock(self) -> None:
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def _listen(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)  # of an owner that has died
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        listener.settimeout(ACCEPT_TIMEOUT)
        self._listener = listener
        self._accept_thread = _start_thread(lambda: self._accept_clients(listener), "local-bus")

    def _accept_clients(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError as exc:
                if self._listener is listener:
                    logger.warning("the local bus cannot accept a client: %s", exc)
                    time.sleep(ACCEPT_TIMEOUT)  # until there are file descriptors again
                continue
            if self._listener is listener:
                connection.settimeout(None)
                Client(self, connection).start()
            else:
                connection.close()


class Client:
    """One connection to the bus, and who is at its other end.

    Its replies and messages wait in a backlog. The thread that reads its commands sends them as
    long as it only answers; from its first subscription on, a second thread does.
    """

    def __init__(self, bus: LocalBus, connection: socket.socket) -> None:
        self.bus = bus
        self.channels: set[bytes] = set()
        self.name = b""
        self.is_quitting = False
        self._connection = connection
        self._parser = resp.CommandParser(bus.max_message_size + MAX_HEADER_SIZE)
        self._backlog: deque[bytes] = deque()
        self._backlog_size = 0  # bytes
        self._has_ended = False
        self._changed = threading.Condition(bus.turn)  # the backlog, or _has_ended
        self._reader: threading.Thread | None = None
        self._writer: threading.Thread | None = None

    def start(self) -> None:
        with self.bus.turn:
            self.bus.clients.add(self)
        self._reader = _start_thread(self._serve, "local-bus-client")

    def join(self, timeout: float) -> None:
        if self._reader is not None:
            self._reader.join(timeout)

    def put(self, data: bytes) -> None:
        """Queue bytes for the client, in the caller's turn."""
        if self._has_ended:
            return
        # A single answer may be larger: somebody waits for it, and asks for nothing more.
        if self._backlog and self._backlog_size + len(data) > MAX_BACKLOG:
            logger.warning(
                "the local bus disconnects a client that is %d bytes behind (%d channels)",
                self._backlog_size,
                len(self.channels),
            )
            self.drop()
            return
        self._backlog.append(data)
        self._backlog_size += len(data)
        self._changed.notify()

    def drop(self) -> None:
        """Disconnect the client, in the caller's turn."""
        self._has_ended = True
        self._backlog.clear()
        self._backlog_size = 0
        self._changed.notify()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes both threads

    def _serve(self) -> None:
        try:
            if self._is_trusted():
                self._read_commands()
        except OSError:
            pass  # the client has left
        finally:
            self._end()

    def _is_trusted(self) -> bool:
        if sys.platform != "linux":
            return True  # the directory is closed to others
        credentials = self._connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size
        )
        _, uid, _ = PEER_CREDENTIALS.unpack(credentials)
        if uid in (0, os.geteuid()):
            return True
        logger.warning("the local bus refuses a client of uid %d", uid)
        return False

    def _read_commands(self) -> None:
        while data := self._connection.recv(RECEIVE_SIZE):
            self._parser.feed(data)
            try:
                self._execute_commands()
            except ProtocolError as exc:
                logger.warning("the local bus disconnects a client: %s", exc)
                self._refuse(exc)
                return
            self._send_backlog()
            if self.is_quitting:
                return

    def _execute_commands(self) -> None:
        for arguments in self._parser.commands():
            with self.bus.turn:
                self.put(execute(self, arguments))
            if self.is_quitting:
                return

    def _send_backlog(self) -> None:
        if self._writer is None and self.channels:
            self._writer = _start_thread(self._write, "local-bus-writer")
        elif self._writer is None:
            while self._backlog:
                self._connection.sendall(self._take())

    def _refuse(self, error: ProtocolError) -> None:
        with self.bus.turn:
            self.put(resp.encode_error(f"ERR Protocol error: {error}"))
        self._send_backlog()
        self._stop_writing()
        # It may be in the middle of a long write, and reads the answer only after it.
        self._connection.settimeout(LINGER_TIMEOUT)
        while self._connection.recv(RECEIVE_SIZE):
            pass

    def _write(self) -> None:
        with suppress(OSError):
            while data := self._take():
                self._connection.sendall(data)

    def _take(self) -> bytes:
        """Return what is to be sent next, waiting for it; nothing once the client is to go."""
        pieces = []
        size = 0
        with self._changed:
            while not self._backlog and not self._has_ended:
                self._changed.wait()
            while self._backlog and size < SEND_SIZE:
                pieces.append(self._backlog.popleft())
                size += len(pieces[-1])
            self._backlog_size -= size
        return b"".join(pieces)

    def _stop_writing(self) -> None:
        """Send what waits, and no more."""
        with self.bus.turn:
            for channel in list(self.channels):
                self.bus.unsubscribe(self, channel)
            self._has_ended = True
            self._changed.notify()
        if self._writer is not None:
            self._writer.join(LINGER_TIMEOUT)
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def _end(self) -> None:
        self._stop_writing()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if self._writer is not None:
            self._writer.join()
        with self.bus.turn:
            self.bus.clients.discard(self)
        self._connection.close()


def _wake_listener(path: str) -> None:
    # Shutting the listener down wakes accept() on some systems only.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(ACCEPT_TIMEOUT)
        sock.connect(path)


def _start_thread(run: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
