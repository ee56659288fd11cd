"""The bus's client: publishing to it, reading its history, and following its channels.

The same code speaks to Redis and to the local bus, on plain threads in Django's processes and on
greenlets in a hub.
"""

from __future__ import annotations

from .connecting import TIMEOUT, connection_options
from .message import Outgoing
from .publisher import Clock, Log, Page, Publisher, Snapshot
from .subscription import Pong, Received, Reply, Subscribed, Subscription, Unsubscribed

__all__ = [
    "TIMEOUT",
    "Clock",
    "Log",
    "Outgoing",
    "Page",
    "Pong",
    "Publisher",
    "Received",
    "Reply",
    "Snapshot",
    "Subscribed",
    "Subscription",
    "Unsubscribed",
    "connection_options",
]
