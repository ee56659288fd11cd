"""The bus's client: publishing to it, and following its channels.

The same code speaks to Redis and to the local bus, on plain threads in Django's processes and on
greenlets in a hub. redis-py finds the server, connects and parses; what it would do unasked is
off: it must neither send a message twice nor subscribe again in silence after a loss.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, UnixDomainSocketConnection, parse_url
from redis.retry import Retry

from ..errors import BusUnavailable
from .address import BusAddress
from .local import check_directory, socket_path

TIMEOUT = 2.0

SUPPORTED = "redis://, rediss://, unix:// and local: are supported"

# A dead Redis host is noticed after 30 + 3 * 5 seconds without traffic.
KEEPALIVE = {
    getattr(socket, name): value
    for name, value in {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)
}


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


class Publisher:
    """Sends messages to a bus, from any thread and also after a fork.

    Channels are given as the bus knows them, see `BusAddress.channel`. No message is sent twice:
    after a failure it is for the caller to say whether a second copy would do harm.

    Args:
        address: The bus.
        timeout: How long to wait for a connection, and for an answer, in seconds.

    Raises:
        ValueError: The address names no bus.
    """

    def __init__(self, address: BusAddress, timeout: float = TIMEOUT) -> None:
        self.address = address
        self._options = connection_options(address, timeout)
        self._client: Any = self._make_client()
        self._pid = os.getpid()

    def publish(self, channel: str, payload: bytes) -> int:
        """Send one message and return how many subscribers it had.

        Raises:
            BusUnavailable: The bus refused or did not answer; the message may have been sent.
        """
        with _translated_errors(self.address):
            return int(self._connected_client().publish(_encode(channel), payload))

    def publish_many(self, messages: Sequence[tuple[str, bytes]]) -> list[int]:
        """Send messages in their order and one round trip; return their numbers of subscribers.

        Raises:
            BusUnavailable: The bus refused or did not answer; any of the messages may have been sent.
        """
        if not messages:
            return []
        with _translated_errors(self.address):
            pipeline = self._connected_client().pipeline(transaction=False)
            for channel, payload in messages:
                pipeline.publish(_encode(channel), payload)
            return [int(receivers) for receivers in pipeline.execute()]

    def count_hubs(self) -> int:
        """Return how many hubs follow this bus."""
        with _translated_errors(self.address):
            [(_, count)] = self._connected_client().pubsub_numsub(_encode(self.address.hubs_channel))
            return int(count)

    def close(self) -> None:
        self._client.connection_pool.disconnect()

    def _connected_client(self) -> Any:
        # redis-py's pool notices a fork as well, but keeps a lock that a thread may have held then.
        if self._pid != os.getpid():
            self._client = self._make_client()
            self._pid = os.getpid()
        _check_local(self.address)
        return self._client

    def _make_client(self) -> redis.Redis:
        # Before it gives out a connection, the pool looks whether the server has closed it.
        return redis.Redis(connection_pool=_make_pool(self._options))


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
        self._connection: Any = _make_pool(connection_options(address, timeout)).make_connection()
        self._timeout = timeout
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        # redis-py's own send connects again if it must, which would lose the subscriptions in
        # silence; so we write to its socket. None before connect() and after close().
        self._socket: socket.socket | None = None
        self._is_closed = False

    def connect(self) -> None:
        """Connect and log in.

        Raises:
            BusUnavailable: There is no connection.
        """
        with self._reading, self._writing, _translated_errors(self.address):
            if self._is_closed:
                raise self._closed_error()
            _check_local(self.address)
            self._connection.connect()
            self._socket = self._connection._sock

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
        with self._reading:
            while True:
                try:
                    return _read_reply(self._read_response(timeout))
                except redis.TimeoutError:
                    if timeout is not None:
                        return None
                except (redis.RedisError, OSError) as exc:
                    raise self._broken_error(exc) from exc

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
        if timeout is None:
            return self._connection.read_response(disable_decoding=True, disconnect_on_error=False)
        self._socket.settimeout(max(timeout, 0.001))  # 0 would mean something else
        try:
            return self._connection.read_response(disable_decoding=True, disconnect_on_error=False)
        finally:
            self._socket.settimeout(self._timeout)

    def _write_channels(self, command: str, channels: Iterable[str]) -> None:
        names = [_encode(channel) for channel in channels]
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

    def _broken_error(self, exc: Exception) -> BusUnavailable:
        return self._closed_error() if self._is_closed else _unavailable(self.address, exc)

    def _closed_error(self) -> BusUnavailable:
        return BusUnavailable(f"the subscription to {self.address.safe_url} is not connected")


def connection_options(address: BusAddress, timeout: float) -> dict[str, Any]:
    """Return the arguments of a redis-py `ConnectionPool`.

    Args:
        address: The bus; its directory is not looked at yet if it is local.
        timeout: For connecting, and for each read and write, in seconds.

    Raises:
        ValueError: It is no address of a bus that we can use.
        BusUnavailable: It is local, and its path is too long for a socket.
    """
    options: dict[str, Any]
    if address.is_local:
        if not os.path.isabs(address.directory):
            raise ValueError("a local bus's address is local: and the absolute path of its directory")
        options = {"connection_class": UnixDomainSocketConnection, "path": socket_path(address.directory)}
    else:
        options = _read_url(address)
    options.setdefault("connection_class", Connection)
    options.setdefault("max_connections", 2**31)  # one for each thread that publishes
    options.pop("retry_on_error", None)
    options |= {
        "protocol": 2,  # maintenance notifications and the like need RESP3
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
    }
    if not issubclass(options["connection_class"], UnixDomainSocketConnection):
        options |= {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
    try:
        _make_pool(options).make_connection()
    except (TypeError, redis.RedisError) as exc:
        raise ValueError(f"the bus's URL {address.safe_url} has a wrong option: {exc}") from exc
    return options


def _read_url(address: BusAddress) -> dict[str, Any]:
    scheme = address.url.partition(":")[0]
    if "cluster" in scheme:
        raise ValueError(f"a bus on Redis Cluster ({scheme}:) is not supported yet: {SUPPORTED}")
    if not address.url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError(f"a bus's URL cannot begin with {scheme[:20]!r}: {SUPPORTED}")
    try:
        options: dict[str, Any] = parse_url(address.url)  # type: ignore[no-untyped-call]
    except ValueError:
        # Its message may quote a part of the password.
        raise ValueError(
            f"the bus's URL {address.safe_url} cannot be read; special characters in a password are "
            "written as %40 and the like"
        ) from None
    if scheme == "unix" and not options.get("path"):
        raise ValueError("the bus's URL unix:// has no path")
    return options


def _make_pool(options: dict[str, Any]) -> ConnectionPool:
    return ConnectionPool(**options)


def _check_local(address: BusAddress) -> None:
    if address.is_local:
        check_directory(address.directory, trusted_uids=(os.geteuid(), 0))


@contextmanager
def _translated_errors(address: BusAddress) -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as exc:
        raise _unavailable(address, exc) from exc


def _unavailable(address: BusAddress, exc: Exception) -> BusUnavailable:
    return BusUnavailable(f"the bus at {address.safe_url} is unavailable: {exc}")


def _read_reply(response: Any) -> Reply:
    match response:
        case [b"message", channel, payload]:
            return Received(_decode(channel), payload)
        case [b"pong", token]:
            return Pong(token)
        case [b"subscribe", channel, _]:
            return Subscribed(_decode(channel))
        case [b"unsubscribe", channel, _]:
            return Unsubscribed(_decode(channel))
        case bytes():  # PING while we follow nothing
            return Pong(response)
    raise redis.InvalidResponse(f"unexpected {response!r:.100}")


# Channels that others name need not be UTF-8.


def _encode(channel: str) -> bytes:
    return channel.encode("utf-8", "surrogateescape")


def _decode(channel: bytes) -> str:
    return channel.decode("utf-8", "surrogateescape")
