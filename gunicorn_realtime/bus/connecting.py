"""How a bus's client connects, by redis-py, and what goes wrong.

What redis-py would do unasked is off: it must neither send a message twice nor subscribe again in
silence after a loss.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, UnixDomainSocketConnection, parse_url
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)

from ..errors import BusUnavailable
from .address import BusAddress
from .local import check_directory, socket_path

TIMEOUT = 2.0  # seconds

SUPPORTED = "redis://, rediss://, unix://, redis+sentinel:// and local: are supported"

SENTINEL_PORT = 26379

# A dead Redis host is noticed after 30 + 3 * 5 seconds without traffic.
KEEPALIVE = {
    getattr(socket, name): value
    for name, value in {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)
}


def connection_options(address: BusAddress, timeout: float) -> dict[str, Any]:
    """Return the arguments of `make_pool`.

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
    options |= {**_fixed_options(timeout), "retry_on_timeout": False}
    if not issubclass(options["connection_class"], UnixDomainSocketConnection):
        options |= {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
    if "sentinels" in options:
        options["sentinel_options"] |= _fixed_options(timeout)
    try:
        make_pool(options).make_connection()
    except (TypeError, redis.RedisError) as exc:
        raise ValueError(f"the bus's URL {address.safe_url} has a wrong option: {exc}") from exc
    return options


def _fixed_options(timeout: float) -> dict[str, Any]:
    return {
        "protocol": 2,  # maintenance notifications and the like need RESP3
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
    }


def _read_url(address: BusAddress) -> dict[str, Any]:
    scheme = address.url.partition(":")[0]
    if "cluster" in scheme:
        raise ValueError(f"a bus on Redis Cluster ({scheme}:) is not supported yet: {SUPPORTED}")
    if not address.url.startswith(("redis://", "rediss://", "unix://", "redis+sentinel://")):
        raise ValueError(f"a bus's URL cannot begin with {scheme[:20]!r}: {SUPPORTED}")
    try:
        if scheme == "redis+sentinel":
            options = _read_sentinel_url(address.url)
        else:
            options = _parse(address.url)
    except ValueError:
        # Its message may quote a part of the password.
        raise ValueError(
            f"the bus's URL {address.safe_url} cannot be read; special characters in a password are "
            "written as %40 and the like"
        ) from None
    if scheme == "unix" and not options.get("path"):
        raise ValueError("the bus's URL unix:// has no path")
    return options


def _read_sentinel_url(url: str) -> dict[str, Any]:
    """Read `redis+sentinel://[user:password@]host:port[,host:port...]/service[/db][?option=...]`.

    User, password and options are those of the Redis that Sentinel names, except `sentinel_username`
    and `sentinel_password`.
    """
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not service or "@" in parts.path + parts.query + parts.fragment:
        raise ValueError("it names no service")
    if database and not database.isdecimal():
        raise ValueError("a database is a number")
    options = _parse(f"redis://{credentials}{at}sentinel/{database}?{parts.query}")
    del options["host"]
    sentinels = [urlsplit(f"//{host}") for host in hosts.split(",")]
    if not all(sentinel.hostname for sentinel in sentinels):
        raise ValueError("a Sentinel has no name")
    return options | {
        "connection_class": SentinelManagedConnection,
        "sentinels": [(sentinel.hostname, sentinel.port or SENTINEL_PORT) for sentinel in sentinels],
        "service_name": service,
        "sentinel_options": {
            name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")
        },
    }


def _parse(url: str) -> dict[str, Any]:
    options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    return options


def make_pool(options: dict[str, Any]) -> ConnectionPool:
    """Return a pool of connections; each asks Sentinel where to go if options name some."""
    if "sentinels" not in options:
        return ConnectionPool(**options)
    options = dict(options)
    sentinel = Sentinel(options.pop("sentinels"), sentinel_kwargs=options.pop("sentinel_options"))  # type: ignore[no-untyped-call]
    return SentinelConnectionPool(options.pop("service_name"), sentinel, **options)  # type: ignore[no-untyped-call]


def check_local(address: BusAddress) -> None:
    if address.is_local:
        check_directory(address.directory, trusted_uids=(os.geteuid(), 0))


@contextmanager
def translated_errors(address: BusAddress) -> Iterator[None]:
    try:
        yield
    except MasterNotFoundError:
        # Its message may hold a password.
        raise BusUnavailable(
            f"the bus at {address.safe_url} is unavailable: no Sentinel answers that knows its master"
        ) from None
    except (redis.RedisError, OSError) as exc:
        raise unavailable(address, exc) from exc


def unavailable(address: BusAddress, exc: Exception) -> BusUnavailable:
    return BusUnavailable(f"the bus at {address.safe_url} is unavailable: {exc}")


# Channels that others name need not be UTF-8.


def encode_name(channel: str) -> bytes:
    return channel.encode("utf-8", "surrogateescape")


def decode_name(channel: bytes) -> str:
    return channel.decode("utf-8", "surrogateescape")
