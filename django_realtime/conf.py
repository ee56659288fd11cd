"""The setting `REALTIME`, read at use so that `override_settings` works."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from django.conf import ENVIRONMENT_VARIABLE, settings

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.local import local_directory

DEFAULTS: Mapping[str, Any] = {
    "BUS": "local:",
    "PREFIX": "",
    "BUS_TIMEOUT": 2.0,  # seconds
    "HEARTBEAT": 25.0,  # seconds
    "RETRY": (1.0, 5.0),  # seconds: each client is told a time between the two
    "MAX_MESSAGE_SIZE": 1024 * 1024,  # bytes
}


class Conf:
    """The values in use. What they must be is said once, in `checks`."""

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

    def _get(self, key: str) -> Any:
        return getattr(settings, "REALTIME", {}).get(key, DEFAULTS[key])


def _project() -> tuple[str, str]:
    # Not `settings.SETTINGS_MODULE`, which is None under `override_settings`.
    return os.environ.get(ENVIRONMENT_VARIABLE, ""), str(getattr(settings, "BASE_DIR", ""))


conf = Conf()
