"""A channel as a bus knows it: its name, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SlowClient(StrEnum):
    """What becomes of a client whose position falls off the end of a channel's feed."""

    RESUME = "resume"  # it is cut, and returns with its cursor
    LATEST = "latest"  # it gets the newest message of the channel, and not those between


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel and its rules.

    Args:
        name: On the bus, prefix included (`BusAddress.channel` makes it).
        history: How many messages are kept; 0 keeps none, gives them no ids, and each is delivered
            at most once.
        ttl: Seconds that the history outlives the channel's newest message.
        slow_client: For clients that read more slowly than messages come.
    """

    name: str
    history: int = 0
    ttl: float = 0.0
    slow_client: SlowClient = SlowClient.RESUME
