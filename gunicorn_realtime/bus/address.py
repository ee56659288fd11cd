"""Where a site's bus is, and which channel names it takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import ChannelNameError

# Long enough for any template; short enough that a name costs little in every frame and key.
MAX_CHANNEL_SIZE = 200  # bytes

# Ours, below the site's prefix: control messages never travel on a user's channel.
RESERVED = "rt:"

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class BusAddress:
    """One bus as workers, hubs and publishers name it.

    Args:
        url: `redis://`, `rediss://` or `unix://` as redis-py reads them;
            `redis+sentinel://[user:password@]host:port[,host:port...]/service[/db]`; or `local:`
            followed by the absolute path of the directory that holds the local bus's socket and lock.
        prefix: Put before every channel name and key, so that sites can share one Redis.
    """

    url: str
    prefix: str = ""

    @property
    def is_local(self) -> bool:
        return self.url.startswith("local:")

    @property
    def directory(self) -> str:
        """The local bus's directory."""
        return self.url.removeprefix("local:")

    @property
    def safe_url(self) -> str:
        """The URL without user, password and options, for messages and logs."""
        if self.is_local:
            return self.url
        scheme = self.url.partition(":")[0]
        try:
            parts = urlsplit(self.url)
        except ValueError:
            return f"{scheme}://"
        if "@" in parts.path + parts.query + parts.fragment:
            return f"{scheme}://"  # misread: a password with "/", "?" or "#" in it
        return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def __repr__(self) -> str:
        return f"BusAddress({self.safe_url!r}, prefix={self.prefix!r})"

    @property
    def hubs_channel(self) -> str:
        """The control channel that every hub on this bus follows."""
        return f"{self.prefix}{RESERVED}hubs"

    @property
    def clock_key(self) -> str:
        """The hash that orders everything on this bus."""
        return f"{self.prefix}{RESERVED}clock"

    def log_key(self, channel: str) -> str:
        """Return the key of a channel's history; the channel as `channel` gives it."""
        return f"{self.prefix}{RESERVED}log:{channel.removeprefix(self.prefix)}"

    def consumer_key(self, name: str) -> str:
        """Return the key of a consumer's cursor, and the channel on which it gets its own ticks."""
        return f"{self.prefix}{RESERVED}consumer:{name}"

    def channel(self, name: str) -> str:
        """Return `name` as the bus knows it.

        Raises:
            ChannelNameError: It is empty, too long, reserved, or has control characters.
        """
        if not name:
            raise ChannelNameError("a channel's name is empty")
        if name.startswith(RESERVED):
            raise ChannelNameError(f"channel {name!r}: names that begin with {RESERVED!r} are reserved")
        if CONTROL_CHARACTERS.search(name):
            raise ChannelNameError(f"channel {name!r} has control characters")
        try:
            size = len(name.encode())
        except UnicodeEncodeError as exc:
            raise ChannelNameError(f"channel {name!r} is not valid Unicode") from exc
        if size > MAX_CHANNEL_SIZE:
            raise ChannelNameError(f"channel {name[:40]!r}… has {size} bytes, more than {MAX_CHANNEL_SIZE}")
        return self.prefix + name


# What the application that this worker has loaded said of its bus. A hub that is started learns
# it at once, so that a publisher can tell a site without hubs from one without listeners.
_announced: BusAddress | None = None


def announce(address: BusAddress) -> None:
    """Say which bus this process's application publishes to; hubs connect to it at once."""
    global _announced
    _announced = address


def announced() -> BusAddress | None:
    return _announced
