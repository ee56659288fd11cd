"""The setting `REALTIME`, read at use so that `override_settings` works."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from django.conf import ENVIRONMENT_VARIABLE, settings

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.bus.local import local_directory

DEFAULTS: Mapping[str, Any] = {
    "BUS": "local:",
    "PREFIX": "",
    "CHANNELS": {},
    "BUS_TIMEOUT": 2.0,  # seconds
    "HEARTBEAT": 25.0,  # seconds
    "RETRY": (1.0, 5.0),  # seconds: each client is told a time between the two
    "MAX_MESSAGE_SIZE": 1024 * 1024,  # bytes
    "EVENT_TIMEOUT": 30.0,  # seconds
    "ORIGINS": (),  # of other sites' pages that may open a WebSocket, beside CSRF_TRUSTED_ORIGINS
}

# What is kept of a channel of which CHANNELS says nothing.
CHANNEL_DEFAULTS: Mapping[str, Any] = {
    "history": 100,  # messages
    "ttl": 300,  # seconds
    "slow_client": SlowClient.RESUME,
}

# The pattern whose rules hold wherever a more specific one leaves them out.
EVERY_CHANNEL = "*"

WILDCARD = re.compile(r"[*?[]")

# Names in use at a time, about; 100 bytes each.
CACHED_CHANNELS = 10_000

NO_SETTING: Mapping[str, Any] = {}


class Conf:
    """The values in use. What they must be is said once, in `checks`."""

    def __init__(self) -> None:
        self._channels: Channels | None = None

    @property
    def bus(self) -> BusAddress:
        """Where the site publishes. `local:` alone stands for a directory of this project's own."""
        url = self._get("BUS")
        if url == "local:":
            url += local_directory(*_project(), self.prefix)
        return BusAddress(url, self.prefix)

    @property
    def prefix(self) -> str:
        """Put before every channel name and key."""
        prefix: str = self._get("PREFIX")
        return prefix

    def channel(self, name: str) -> Channel:
        """Return the channel that the site calls `name`, with the rules of the most specific pattern.

        Raises:
            ChannelNameError: No channel can have that name.
        """
        setting = self._setting()
        channels = self._channels
        if channels is None or channels.setting is not setting:
            channels = self._channels = Channels(setting)
        return channels.get(name)

    @property
    def bus_timeout(self) -> float:
        """Seconds that publishing may take."""
        return float(self._get("BUS_TIMEOUT"))

    @property
    def heartbeat(self) -> float:
        """Seconds of silence after which a stream gets a comment."""
        return float(self._get("HEARTBEAT"))

    @property
    def retry(self) -> tuple[float, float]:
        """The least and the most seconds that a client waits before it reconnects."""
        least, most = self._get("RETRY")
        return float(least), float(most)

    @property
    def max_message_size(self) -> int:
        """The most bytes that one message's data may have."""
        return int(self._get("MAX_MESSAGE_SIZE"))

    @property
    def event_timeout(self) -> float:
        """Seconds that a handler may take before its connection is closed."""
        return float(self._get("EVENT_TIMEOUT"))

    @property
    def origins(self) -> tuple[str, ...]:
        """Other sites whose pages may open a WebSocket, as in CSRF_TRUSTED_ORIGINS."""
        origins = self._get("ORIGINS")
        # A server runs no checks, and a "*" among the letters of one text would let everybody in.
        return (origins,) if isinstance(origins, str) else tuple(origins)

    def _get(self, key: str) -> Any:
        return self._setting().get(key, DEFAULTS[key])

    def _setting(self) -> Mapping[str, Any]:
        setting: Mapping[str, Any] = getattr(settings, "REALTIME", NO_SETTING)
        return setting


class Channels:
    """The channels of one value of `REALTIME`; those asked for lately are remembered."""

    def __init__(self, setting: Mapping[str, Any]) -> None:
        self.setting = setting
        self.rules: Mapping[str, Mapping[str, Any]] = setting.get("CHANNELS", DEFAULTS["CHANNELS"])
        self.patterns = sorted(filter(WILDCARD.search, self.rules), key=_specificity, reverse=True)
        self.bus = BusAddress("", setting.get("PREFIX", DEFAULTS["PREFIX"]))
        self.get = lru_cache(CACHED_CHANNELS)(self._make)

    def _make(self, name: str) -> Channel:
        bus_name = self.bus.channel(name)
        rules = rules_of(self.rules, self._pattern(name))
        return Channel(bus_name, rules["history"], float(rules["ttl"]), SlowClient(rules["slow_client"]))

    def _pattern(self, name: str) -> str:
        if name in self.rules:
            return name
        return next((pattern for pattern in self.patterns if fnmatchcase(name, pattern)), EVERY_CHANNEL)


def rules_of(rules: Mapping[str, Mapping[str, Any]], pattern: str) -> dict[str, Any]:
    """Return a pattern's rules; what it leaves out is as for `*`, and what that leaves out is a default."""
    return {**CHANNEL_DEFAULTS, **rules.get(EVERY_CHANNEL, {}), **rules.get(pattern, {})}


def _specificity(pattern: str) -> tuple[int, int]:
    """The text before the first wildcard counts, then the whole; equal ones keep the setting's order."""
    return len(WILDCARD.split(pattern, maxsplit=1)[0]), len(pattern)


def _project() -> tuple[str, str]:
    # Not `settings.SETTINGS_MODULE`, which is None under `override_settings`.
    return os.environ.get(ENVIRONMENT_VARIABLE, ""), str(getattr(settings, "BASE_DIR", ""))


conf = Conf()
