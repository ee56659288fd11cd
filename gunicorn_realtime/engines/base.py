"""What a hub asks of every engine, and how it finds one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import ProtocolError
from ..plumbing.events import Event, EventKind, Outcome

if TYPE_CHECKING:
    from ..bus.message import Message
    from ..hub.connection import Connection
    from ..hub.process import Hub
    from ..plumbing.events import Effect
    from ..plumbing.handover import Handover

NAMES = ("engineio", "poll", "socketio", "sse", "websocket")


class Engine:
    """Drives connections in one protocol; one object serves all that have the same options.

    Attributes:
        name: As applications and logs say it.
        encoding: Equal for engines whose `encode` gives the same bytes.
        heartbeat: Seconds between two heartbeats, or None.
        is_one_shot: A connection ends with its first message; `finish` is called then.
        timeout: Seconds after which `finish` is called anyway, or None.
    """

    name: str
    encoding: object
    heartbeat: float | None = None
    is_one_shot = False
    timeout: float | None = None

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def admit(self, hub: Hub, fd: int, handover: Handover) -> None:
        """Let a client in, whom the hub has room for."""
        hub.connect(fd, self, handover)

    def open(self, connection: Connection, handover: Handover, cursor: str | None) -> None:
        """Send what comes first: the head, at least, and where the client stands if that is known."""
        raise NotImplementedError

    def encode(self, message: Message) -> bytes:
        """Return a message as it goes over the wire; must not fail, whatever was published."""
        raise NotImplementedError

    def beat(self, cursor: str | None = None) -> bytes:
        """Return what shows the client, and everything between, that the connection lives.

        Args:
            cursor: What the client may say next time instead of the last message's.
        """
        return b""

    def reset(self, channels: Iterable[str], reason: str, cursor: str | None = None) -> bytes:
        """Return the notice that messages of these channels are missing for good.

        Args:
            cursor: From which on nothing is missing, if nothing else is to be told before that.
        """
        return b""

    def goodbye(self) -> bytes:
        """Return what comes last when the hub stops."""
        return b""

    def tell(self, data: bytes, *, is_binary: bool) -> bytes:
        """Return what an application says to one client, which is no message of a channel."""
        raise NotImplementedError

    def finish(self, connection: Connection) -> None:
        """End a connection that has had its one message, or has waited for it long enough."""
        raise NotImplementedError

    def may_follow(self, connection: Connection, channel: str) -> bool:
        """Tell whether a connection can still be let follow a channel, named as on the bus."""
        return True

    def perform(self, connection: Connection, effect: Effect) -> None:
        """Do what an application wants that only this engine knows."""
        raise NotImplementedError

    def closing_events(self, connection: Connection, code: int) -> list[Event]:
        """Return what an application is told last of a connection."""
        return [Event(EventKind.CLOSED, code=code)]

    def handled(self, connection: Connection) -> None:
        """The application has handled all that the client sent."""

    def failed(
        self, connection: Connection, event: Event, outcome: Outcome | None, code: int, reason: str
    ) -> None:
        """The application has not handled an event.

        Args:
            outcome: None if it did not answer.
            code, reason: What that means for a connection; see `disconnect`.
        """
        self.disconnect(connection, code, reason)

    def received(self, connection: Connection, data: bytes) -> None:
        """Act on what the client sent."""
        raise NotImplementedError

    def resumed(self, connection: Connection) -> None:
        """Go on with what had been read when the client was to wait."""

    def is_gone(self, connection: Connection) -> bool:
        """Tell, before each heartbeat, whether the last one should have been answered and was not."""
        return False

    def disconnect(self, connection: Connection, code: int, reason: str) -> None:
        """End a connection before its time.

        Args:
            code: As in a WebSocket's close frame; others have no place for it.
            reason: One line, for the client where its protocol has a place for it, and for the log.
        """
        connection.hub.end(connection, self.goodbye(), reason)

    def left(self, connection: Connection) -> None:
        """Forget a connection that this hub holds no longer."""


def heartbeat_of(options: Mapping[str, Any]) -> float:
    """Return the seconds between two heartbeats of an engine with these options.

    Raises:
        ValueError: They are not more than 0.
    """
    heartbeat = float(options.get("heartbeat", 25.0))
    if not heartbeat > 0:
        raise ValueError(f"heartbeat={heartbeat} must be more than 0 seconds")
    return heartbeat


def make_engine(name: str, options: Mapping[str, Any]) -> Engine:
    """Return the engine of that name.

    Raises:
        ProtocolError: There is none, or it cannot take these options.
    """
    if name not in NAMES:
        raise ProtocolError(f"there is no engine {name!r}; there are {', '.join(NAMES)}")
    try:
        engine: Engine = import_module(f".{name}", __package__).ENGINE(options)
    except (TypeError, ValueError) as exc:
        raise ProtocolError(f"engine {name!r} cannot take the options {dict(options)}: {exc}") from exc
    return engine
