"""Event calls: what happens to a connection in a hub becomes a short request to its application.

A hub sends an event thread of a worker a frame and one end of a socket pair, which only the two
have. On the pair the hub sends the event's data; the thread says that it begins, and when the
application is done, what is to be done with the connection:

    hub      data, as many bytes as the frame says
    thread   BEGUN
    thread   size, 4 bytes in network order; the answer, JSON

An end without an answer means that the thread's process has died.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from enum import StrEnum
from typing import Any

from ..bus.channel import Channel
from ..bus.message import Emission, Outgoing
from ..errors import ProtocolError, TooLarge
from .frames import Frame, Kind
from .handover import channel_from

# The WSGI extension: an application finds its event here. No header can: they begin with HTTP_.
ENVIRON_KEY = "gunicorn_realtime.event"

BEGUN = b"B"
SIZE = struct.Struct("!I")

# What one call may send, as JSON: twice the largest message that hubs take by default.
MAX_ANSWER_SIZE = 2 * 1024 * 1024  # bytes

# Names and flags, not content: it goes to the application and back with each event.
MAX_STATE_SIZE = 16 * 1024  # bytes


class EventKind(StrEnum):
    OPENED = "opened"  # the response has begun
    RECEIVED = "received"  # a message of the client
    CLOSED = "closed"  # nothing more comes


@dataclass(frozen=True, slots=True)
class Send:
    """A message to this client alone."""

    data: bytes
    is_binary: bool = False


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Let the connection follow one more channel.

    Args:
        cursor: What was published since then comes first, as far as the channel's history has it.
    """

    channel: Channel
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Let the connection follow a channel no more; the name is that on the bus."""

    channel: str


@dataclass(frozen=True, slots=True)
class Close:
    """End the connection; code and reason as in a WebSocket's close frame."""

    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish a message, when the connection has what it was subscribed to before."""

    message: Outgoing


@dataclass(frozen=True, slots=True)
class Accept:
    """Let a client of Socket.IO into a namespace.

    Args:
        channels: What it follows there from now on, and where it was interrupted before if it has recovered.
    """

    namespace: str
    channels: tuple[Channel, ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not let a client of Socket.IO into a namespace.

    Args:
        error: What its `connect_error` gets, a JSON object with a "message".
    """

    namespace: str
    error: str


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Let a client of Socket.IO be in a namespace no longer; its connection remains."""

    namespace: str


Effect = Send | Subscribe | Unsubscribe | Close | Publish | Accept | Refuse | Dismiss


class Outcome(StrEnum):
    DONE = "done"
    REFUSED = "refused"  # by something before the view, as for who is logged out by now
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is to be done with a connection after an event.

    Args:
        effects: In this order.
        state: The connection's from now on, JSON; None leaves it as it was.
    """

    outcome: Outcome
    effects: tuple[Effect, ...] = ()
    state: str | None = None

    def encode(self) -> bytes:
        """Return it as it goes over the pair.

        Raises:
            TooLarge: It has more than `MAX_ANSWER_SIZE` bytes.
        """
        fields = {"outcome": self.outcome, "effects": encode_effects(self.effects), "state": self.state}
        data = json.dumps(fields, separators=(",", ":")).encode()
        if len(data) > MAX_ANSWER_SIZE:
            raise TooLarge(f"an answer has {len(data)} bytes, more than {MAX_ANSWER_SIZE}")
        return SIZE.pack(len(data)) + data

    @classmethod
    def decode(cls, data: bytes) -> Answer:
        """Read what follows the size.

        Raises:
            ProtocolError: It is none.
        """
        try:
            fields = json.loads(data)
            return cls(Outcome(fields["outcome"]), tuple(decode_effects(fields["effects"])), fields["state"])
        except (KeyError, TypeError, ValueError, RecursionError) as exc:
            raise ProtocolError(f"an answer cannot be read: {exc}") from None


@dataclass(slots=True)
class Event:
    """What an application finds in its environ; it answers by setting `answer`.

    Args:
        details: What else the connection's engine says of it, JSON-able.
    """

    kind: EventKind
    data: bytes = b""
    is_binary: bool = False
    code: int = 0
    state: str = "{}"
    details: Mapping[str, Any] = field(default_factory=dict)
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class EventCall:
    """An event on its way to a worker, with the environ of the request that opened the connection.

    Args:
        environ: JSON, of the text in it.
    """

    event: Event
    environ: str
    size: int  # bytes of the event's data, which come by the pair

    def frame(self) -> Frame:
        event = self.event
        fields = {
            "kind": event.kind,
            "size": self.size,
            "binary": event.is_binary,
            "code": event.code,
            "state": event.state,
            "details": event.details,
        }
        return Frame(Kind.EVENT, fields, self.environ.encode())

    @classmethod
    def from_frame(cls, frame: Frame) -> EventCall:
        fields = frame.fields
        try:
            kind, code, state = EventKind(fields["kind"]), int(fields["code"]), str(fields["state"])
            event = Event(kind, b"", bool(fields["binary"]), code, state, dict(fields["details"]))
            return cls(event, frame.head.decode(), int(fields["size"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise ProtocolError(f"an event call lacks {exc}") from None


class AnswerReader:
    """What a thread sends back, in whatever pieces: feed it, then look at `is_begun` and `answer`."""

    __slots__ = ("_buffer", "answer", "is_begun")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.is_begun = False
        self.answer: Answer | None = None

    def feed(self, data: bytes) -> None:
        """Take more.

        Raises:
            ProtocolError: It is no answer.
        """
        self._buffer += data
        if not self.is_begun and self._buffer:
            if not self._buffer.startswith(BEGUN):
                raise ProtocolError("a thread does not say that it begins")
            del self._buffer[:1]
            self.is_begun = True
        if len(self._buffer) < SIZE.size:
            return
        (size,) = SIZE.unpack_from(self._buffer)
        if size > MAX_ANSWER_SIZE:
            raise TooLarge(f"an answer has {size} bytes, more than {MAX_ANSWER_SIZE}")
        if len(self._buffer) >= SIZE.size + size:
            self.answer = Answer.decode(bytes(self._buffer[SIZE.size : SIZE.size + size]))


def encode_effects(effects: Iterable[Effect]) -> list[list[Any]]:
    """Return effects as JSON takes them."""
    return [_encode_effect(effect) for effect in effects]


def decode_effects(effects: Iterable[list[Any]]) -> list[Effect]:
    """Read what `encode_effects` has made.

    Raises:
        KeyError, TypeError, ValueError: It has not.
    """
    return [_decode_effect(*effect) for effect in effects]


def _encode_effect(effect: Effect) -> list[Any]:
    match effect:
        case Send(data, True):
            return ["bytes", base64.b64encode(data).decode()]
        case Send(data):
            return ["text", data.decode("utf-8", "replace")]
        case Subscribe(channel, cursor):
            return ["subscribe", astuple(channel), cursor]
        case Unsubscribe(channel):
            return ["unsubscribe", channel]
        case Close(code, reason):
            return ["close", code, reason]
        case Publish(Outgoing(channel, data, event, is_binary, emission)):
            encoded = base64.b64encode(data).decode()
            return ["publish", astuple(channel), encoded, event, is_binary, emission and astuple(emission)]
        case Accept(namespace, channels):
            return ["accept", namespace, [astuple(channel) for channel in channels]]
        case Refuse(namespace, error):
            return ["refuse", namespace, error]
        case Dismiss(namespace):
            return ["dismiss", namespace]


def _decode_effect(name: str, *values: Any) -> Effect:
    match name, values:
        case "bytes", [str(data)]:
            return Send(base64.b64decode(data, validate=True), is_binary=True)
        case "text", [str(text)]:
            return Send(text.encode())
        case "subscribe", [[*channel], None | str() as cursor]:
            return Subscribe(channel_from(channel), cursor)
        case "unsubscribe", [str(channel)]:
            return Unsubscribe(channel)
        case "close", [int(code), str(reason)]:
            return Close(code, reason)
        case "publish", [[*channel], str(data), None | str() as event, bool(is_binary), emission]:
            decoded = base64.b64decode(data, validate=True)
            outgoing = Outgoing(channel_from(channel), decoded, event, is_binary, _emission_from(emission))
            return Publish(outgoing)
        case "accept", [str(namespace), [*channels]]:
            return Accept(namespace, tuple(map(channel_from, channels)))
        case "refuse", [str(namespace), str(error)]:
            return Refuse(namespace, error)
        case "dismiss", [str(namespace)]:
            return Dismiss(namespace)
    raise ValueError(f"there is no effect {name!r} of {len(values)} values")


def _emission_from(fields: Any) -> Emission | None:
    if fields is None:
        return None
    sizes, skip, skip_channels, is_volatile = fields
    return Emission(tuple(sizes), tuple(skip), tuple(skip_channels), bool(is_volatile))


def encode_environ(environ: Mapping[str, Any]) -> str:
    """Return what an event call needs of a request's environ: the text in it, as the server made it."""
    text = {name: value for name, value in environ.items() if isinstance(value, str)}
    return json.dumps(text, ensure_ascii=False)
