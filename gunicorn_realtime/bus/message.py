r"""Messages, and how they travel on the bus.

What anyone publishes as plain UTF-8 text is that message's data, nothing else. Everything more
(an event name, an id, data that is not UTF-8) travels in an envelope, and is believed only there:

    FF "RT1" <stamp> LF <header> LF <data>

    stamp   empty, or "<epoch> <id> <id of the channel's previous message>" (decimal microseconds)
    header  JSON object, UTF-8, without a line break

No text begins with FF in UTF-8, so a publisher's text can't be taken for an envelope; and since
`encode` puts everything that is not UTF-8 into an envelope, neither can its bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from ..errors import ProtocolError
from .channel import Channel

MAGIC = b"\xffRT1"

# A header holds names, not content; more than this is somebody's mistake.
MAX_HEADER_SIZE = 16 * 1024  # bytes

STAMP = re.compile(rb"([0-9A-Za-z]{1,32}) ([0-9]{1,16}) ([0-9]{1,16})")
CURSOR = re.compile(r"([0-9A-Za-z]{1,32})-([0-9]{1,16})")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the bus's clock gave a message of a channel that keeps history."""

    epoch: str
    id: int  # microseconds
    previous: int  # id of the channel's previous message

    @property
    def cursor(self) -> str:
        return f"{self.epoch}-{self.id}"


@dataclass(frozen=True, slots=True)
class Emission:
    """What a Socket.IO event has beyond its name: its data are the JSON of its arguments, then its attachments.

    Args:
        sizes: Bytes of the JSON and of each attachment.
        skip: Sockets that do not get it, by their ids.
        skip_channels: Nor does who follows one of these channels, named as on the bus.
        is_volatile: Who lags need not get it.
    """

    sizes: tuple[int, ...]
    skip: tuple[str, ...] = ()
    skip_channels: tuple[str, ...] = ()
    is_volatile: bool = False

    @property
    def is_selective(self) -> bool:
        return bool(self.skip or self.skip_channels)

    def split(self, data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
        """Return the JSON and the attachments."""
        ends = [0, *accumulate(self.sizes)]
        arguments, *attachments = (data[start:end] for start, end in pairwise(ends))
        return arguments, tuple(attachments)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish."""

    channel: Channel
    data: bytes
    event: str | None = None
    is_binary: bool = False
    emission: Emission | None = None


@dataclass(slots=True, eq=False)
class Message:
    """One message of one channel, as a hub holds it.

    Args:
        channel: Its name on the bus, prefix included.
        data: What was published.
        event: The event's name, for engines that know such a thing.
        stamp: Its place in the channel's history, if that is kept.
        reset: Stands in a feed for what is missing there, and says why; none ever comes from the bus.
        is_binary: It is bytes, not text, for engines that tell the two apart.
        emission: It is a Socket.IO event.
    """

    channel: str
    data: bytes
    event: str | None = None
    stamp: Stamp | None = None
    reset: str | None = None
    is_binary: bool = False
    emission: Emission | None = None
    _encodings: dict[object, bytes] | None = field(default=None, repr=False)

    @property
    def id(self) -> int:
        """Its id, or 0 where its channel gives none."""
        return self.stamp.id if self.stamp else 0

    def without_id(self) -> Message:
        """Return the same message as one that moves no cursor."""
        return Message(self.channel, self.data, self.event, is_binary=self.is_binary, emission=self.emission)

    def encoded(self, encoding: object, encode: Callable[[Message], bytes]) -> bytes:
        """Return `encode(self)`, made once for each `encoding`."""
        if self._encodings is None:
            self._encodings = {}
        elif (made := self._encodings.get(encoding)) is not None:
            return made
        made = self._encodings[encoding] = encode(self)
        return made


def parse_cursor(cursor: str) -> tuple[str, int] | None:
    """Return the epoch and the id that a client's cursor names, or None if it can be none."""
    match = CURSOR.fullmatch(cursor)
    return (match[1], int(match[2])) if match else None


def encode(
    data: bytes, event: str | None = None, *, is_binary: bool = False, emission: Emission | None = None
) -> bytes:
    """Return what a publisher sends: the data as it is if that says it all, else an envelope."""
    if event is None and not is_binary and emission is None and _is_utf8(data):
        return data
    return MAGIC + b"\n" + encode_body(data, event, is_binary=is_binary, emission=emission)


def encode_body(
    data: bytes, event: str | None = None, *, is_binary: bool = False, emission: Emission | None = None
) -> bytes:
    """Return what follows the stamp in an envelope; the bus puts the stamp before it."""
    header: dict[str, object] = {} if event is None else {"event": event}
    if emission is not None:
        header["emission"] = astuple(emission)
    elif is_binary or not _is_utf8(data):
        header["binary"] = True
    return b"%b\n%b" % (json.dumps(header).encode(), data)


def decode(channel: str, payload: bytes) -> Message:
    """Read a payload from the bus.

    Raises:
        ProtocolError: It begins like an envelope and is none.
    """
    if not payload.startswith(MAGIC):
        return Message(channel, payload, None, None, None, not _is_utf8(payload))
    stamp, line_break, body = payload[len(MAGIC) :].partition(b"\n")
    if not line_break:
        raise ProtocolError("an envelope ends before its data")
    return decode_body(channel, body, _read_stamp(stamp))


def decode_body(channel: str, body: bytes, stamp: Stamp | None = None) -> Message:
    """Read what follows the stamp in an envelope.

    Raises:
        ProtocolError: It is not what `encode_body` makes.
    """
    header, line_break, data = body.partition(b"\n")
    if not line_break:
        raise ProtocolError("an envelope ends before its data")
    fields = _read_header(header)
    event = fields.get("event")
    if event is not None and not isinstance(event, str):
        raise ProtocolError("an envelope's event is not a string")
    emission = None
    if "emission" in fields:
        emission = _read_emission(fields["emission"], len(data))
    return Message(channel, data, event, stamp, is_binary=fields.get("binary") is True, emission=emission)


def _read_header(header: bytes) -> dict[str, object]:
    if len(header) > MAX_HEADER_SIZE:
        raise ProtocolError(f"an envelope's header has {len(header)} bytes, more than {MAX_HEADER_SIZE}")
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError):
        raise ProtocolError("an envelope's header is not JSON") from None
    if not isinstance(fields, dict):
        raise ProtocolError("an envelope's header is not a JSON object")
    return fields


def _read_emission(fields: Any, size: int) -> Emission:
    match fields:
        case [[*sizes], [*skip], [*skip_channels], bool(is_volatile)] if (
            all(isinstance(part, int) and part >= 0 for part in sizes)
            and sum(sizes) == size
            and all(isinstance(name, str) for name in (*skip, *skip_channels))
        ):
            return Emission(tuple(sizes), tuple(skip), tuple(skip_channels), is_volatile)
    raise ProtocolError("an envelope's emission does not fit its data")


def _read_stamp(stamp: bytes) -> Stamp | None:
    if not stamp:
        return None
    match = STAMP.fullmatch(stamp)
    if match is None:
        raise ProtocolError("an envelope's stamp is not '<epoch> <id> <previous>'")
    epoch, id_, previous = match.groups()
    return Stamp(epoch.decode(), int(id_), int(previous))


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
