"""Following a bus's channels."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis

try:
    import hiredis
except ImportError:
    hiredis = None  # type: ignore[assignment]

from ..errors import BusUnavailable
from .address import BusAddress
from .connecting import (
    TIMEOUT,
    check_local,
    connection_options,
    decode_name,
    encode_name,
    make_pool,
    translated_errors,
    unavailable,
)

READ_SIZE = 64 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Received:
    """A message on a channel that we follow."""

    channel: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Subscribed:
    """From here on, what is published to the channel comes to us."""

    channel: str


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    channel: str


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to `Subscription.ping`; all that was published before it came before it."""

    token: bytes


Reply = Received | Subscribed | Unsubscribed | Pong


class Subscription:
    """One connection to a bus that follows channels, for one reader.

    Connects once. When it breaks, `read` says so, and the reader makes another.

    Args:
        address: The bus.
        timeout: How long to wait for a connection and for room to write, in seconds.

    Raises:
        ValueError: The address names no bus.
    """

    def __init__(self, address: BusAddress, timeout: float = TIMEOUT) -> None:
        self.address = address
        self._connection: Any = make_pool(connection_options(address, timeout)).make_connection()
        self._timeout = timeout
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        # redis-py's own send connects again if it must, which would lose the subscriptions in
        # silence; so we write to its socket. None before connect() and after close().
        self._socket: socket.socket | None = None
        self._replies: Any = None  # hiredis' parser, if it is installed
        self._is_closed = False

    def connect(self) -> None:
        """Connect and log in.

        Raises:
            BusUnavailable: There is no connection.
        """
        with self._reading, self._writing, translated_errors(self.address):
            if self._is_closed:
                raise self._closed_error()
            check_local(self.address)
            self._connection.connect()
            self._socket = self._connection._sock
            if hiredis is not None:  # directly: it costs a tenth of the way through redis-py
                self._replies = hiredis.Reader(redis.InvalidResponse, redis.ResponseError)

    def subscribe(self, channels: Iterable[str]) -> None:
        """Ask for channels, in one command; `read` gives a `Subscribed` for each.

        Raises:
            BusUnavailable: The connection is broken.
        """
        self._write_channels("SUBSCRIBE", channels)

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Leave channels, in one command; `read` gives an `Unsubscribed` for each.

        Raises:
            BusUnavailable: The connection is broken.
        """
        self._write_channels("UNSUBSCRIBE", channels)

    def ping(self, token: bytes) -> None:
        """Ask for a `Pong` with this token.

        Raises:
            BusUnavailable: The connection is broken.
        """
        self._write("PING", token)

    def read(self, timeout: float | None = None) -> Reply | None:
        """Return what comes next.

        Args:
            timeout: Return None if nothing has come after so many seconds; wait for ever if None.

        Raises:
            BusUnavailable: The connection is broken, or closed by us.
        """
        with self._reading, self._broken_errors():
            try:
                return _read_reply(self._read_response(timeout))
            except (redis.TimeoutError, TimeoutError):
                return None

    def read_all(self) -> list[Reply]:
        """Wait for what comes next, and return it with all that has come behind it.

        Raises:
            BusUnavailable: The connection is broken, or closed by us.
        """
        replies: list[Reply] = []
        with self._reading:
            try:
                response = self._read_response(None)
                next_response = self._replies.gets if self._replies is not None else _nothing_more
                while response is not False:
                    replies.append(_read_reply(response))
                    response = next_response()
            except (redis.RedisError, OSError) as exc:  # not `_broken_errors`: this runs for every message
                raise self._broken_error(exc) from exc
        return replies

    def close(self) -> None:
        """Disconnect; a reader that waits is told so. May be called from any thread."""
        self._is_closed = True
        self._shut_down()  # wakes who reads or writes
        with self._reading, self._writing:
            self._socket = None
            self._connection.disconnect()

    def _read_response(self, timeout: float | None) -> Any:
        if self._socket is None:
            raise self._closed_error()
        while timeout is None:
            try:
                return self._next_response(self._socket)
            except (redis.TimeoutError, TimeoutError):
                pass  # the socket's own timeout is for connecting and writing
        self._socket.settimeout(max(timeout, 0.001))  # 0 would mean something else
        try:
            return self._next_response(self._socket)
        finally:
            self._socket.settimeout(self._timeout)

    def _next_response(self, sock: socket.socket) -> Any:
        if self._replies is None:
            return self._connection.read_response(disable_decoding=True, disconnect_on_error=False)
        while (response := self._replies.gets()) is False:  # it has not all arrived yet
            data = sock.recv(READ_SIZE)
            if not data:
                raise redis.ConnectionError("Connection closed by server.")
            self._replies.feed(data)
        return response

    def _write_channels(self, command: str, channels: Iterable[str]) -> None:
        names = [encode_name(channel) for channel in channels]
        if names:
            self._write(command, *names)

    def _write(self, *command: str | bytes) -> None:
        data = b"".join(self._connection.pack_command(*command))
        with self._writing:
            if self._socket is None:
                raise self._closed_error()
            try:
                self._socket.sendall(data)
            except OSError as exc:
                self._shut_down()  # half a command may have been written
                raise self._broken_error(exc) from exc

    def _shut_down(self) -> None:
        sock = self._socket
        if sock is not None:
            with suppress(OSError):
                # A TLS socket's own shutdown() would pull the session away from its reader.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    @contextmanager
    def _broken_errors(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as exc:
            raise self._broken_error(exc) from exc

    def _broken_error(self, exc: Exception) -> BusUnavailable:
        return self._closed_error() if self._is_closed else unavailable(self.address, exc)

    def _closed_error(self) -> BusUnavailable:
        return BusUnavailable(f"the subscription to {self.address.safe_url} is not connected")


def _nothing_more() -> Any:
    return False


def _read_reply(response: Any) -> Reply:
    if type(response) is list and len(response) == 3 and response[0] == b"message":  # as nearly all are
        return Received(decode_name(response[1]), response[2])
    match response:
        case [b"pong", token]:
            return Pong(token)
        case [b"subscribe", channel, _]:
            return Subscribed(decode_name(channel))
        case [b"unsubscribe", channel, _]:
            return Unsubscribed(decode_name(channel))
        case bytes():  # PING while we follow nothing
            return Pong(response)
        case redis.ResponseError():
            raise response
    raise redis.InvalidResponse(f"unexpected {response!r:.100}")
