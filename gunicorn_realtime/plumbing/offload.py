"""What an application says when it gives a connection away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..bus.address import BusAddress
from ..bus.channel import Channel
from ..bus.presence import Presence

# The WSGI extension. An application calls start_response(), then returns what this gives as its
# body: `environ["gunicorn_realtime.offload"](Offload("sse", ("news",), bus))`.
ENVIRON_KEY = "gunicorn_realtime.offload"


@dataclass(frozen=True, slots=True)
class Events:
    """What the application wants to be called for, see `plumbing.events`.

    Args:
        kinds: Of `EventKind`.
        timeout: Seconds that a call may take once it has begun; then the connection is closed.
        state: What the first call finds as the connection's, JSON.
    """

    kinds: tuple[str, ...]
    timeout: float = 30.0
    state: str = "{}"


@dataclass(frozen=True, slots=True)
class Offload:
    """Which engine is to drive the connection, and what it follows.

    Args:
        engine: A module of `gunicorn_realtime.engines`: "sse".
        channels: What it follows; a bare name is a channel without history.
        bus: Where the channels are.
        options: The engine's, JSON-able; see its module. Those of many connections are equal.
        cursor: The position that a returning client says it has reached.
        particulars: What the engine is to know of this connection alone, JSON-able; see its module.
        labels: Whose the connection is, so that it can be ended from afar.
        expires: Unix time when it ends, in seconds.
        events: What happens to the connection becomes calls of the application; None calls it for nothing.
        presence: Who is there while it lasts, and in which channel.
        session: The connection is for a session that has begun, see `plumbing.sessions`, and goes to its hub,
            which reads the request's body if it has one.
    """

    engine: str
    channels: tuple[str | Channel, ...]
    bus: BusAddress
    options: Mapping[str, Any] = field(default_factory=dict)
    cursor: str | None = None
    particulars: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    expires: float | None = None
    events: Events | None = None
    presence: Presence | None = None
    session: str | None = None

    @property
    def followed(self) -> tuple[Channel, ...]:
        return tuple(
            channel if isinstance(channel, Channel) else Channel(channel) for channel in self.channels
        )
