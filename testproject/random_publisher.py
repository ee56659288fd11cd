"""Something to look at: temperatures for `channel_1` to `channel_5`, for a while."""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid

from django.core.cache import cache

import django_realtime as realtime

CHANNELS = range(1, 6)
SECONDS = 30
INTERVAL = 0.2  # seconds

# Holds the token of the one thread that publishes, whichever of the site's processes it is in.
KEY = "random-publisher"

logger = logging.getLogger(__name__)


def start() -> None:
    token = uuid.uuid4().hex
    if cache.add(KEY, token, timeout=SECONDS):
        threading.Thread(target=_run, args=(token,), name=KEY, daemon=True).start()


def stop() -> None:
    cache.delete(KEY)


def is_running() -> bool:
    return cache.get(KEY) is not None


def _run(token: str) -> None:
    while cache.get(KEY) == token:
        try:
            realtime.publish(f"channel_{random.choice(CHANNELS)}", f"{random.gauss(20, 4):.1f} °C")
        except realtime.BusUnavailable:
            logger.warning("no message was published", exc_info=True)
        time.sleep(INTERVAL)
