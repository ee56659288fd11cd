"""Engine.IO's packets, alone and in the bodies of polls (engine.io-protocol, revisions 4 and 3).

https://socket.io/docs/v4/engine-io-protocol; revision 3 is that of the 2.x clients. A message of a
WebSocket is one packet; a body of HTTP long-polling, here a payload, holds several.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from ..errors import ProtocolError, TooLarge

# A client puts into one body what it has emitted since the last; this many, empty, take 2 MB of memory.
MAX_PACKETS = 16 * 1024


class PacketType(IntEnum):
    """https://socket.io/docs/v4/engine-io-protocol#protocol"""

    OPEN = 0
    CLOSE = 1
    PING = 2
    PONG = 3
    MESSAGE = 4
    UPGRADE = 5
    NOOP = 6


@dataclass(frozen=True, slots=True)
class Packet:
    type: PacketType
    data: bytes = b""  # of text, its UTF-8
    is_binary: bool = False  # only a MESSAGE can be


class Refusal(Enum):
    """Why a request is refused; code and text are those of the official server."""

    TRANSPORT_UNKNOWN = (0, "Transport unknown")
    SESSION_UNKNOWN = (1, "Session ID unknown")
    BAD_HANDSHAKE_METHOD = (2, "Bad handshake method")
    BAD_REQUEST = (3, "Bad request")
    FORBIDDEN = (4, "Forbidden")
    UNSUPPORTED_VERSION = (5, "Unsupported protocol version")

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        """HTTP's status."""
        return 403 if self is Refusal.FORBIDDEN else 400

    @property
    def body(self) -> bytes:
        return _dump({"code": self.code, "message": self.message})


TYPES = {b"%d" % packet_type: packet_type for packet_type in PacketType}
DIGITS = {packet_type: digit for digit, packet_type in TYPES.items()}

SEPARATOR = b"\x1e"  # between the packets of revision 4
BASE64 = b"b"  # begins binary data in a text
LINE_ENDS = b"\r\n"  # the Java client wraps its base64, as MIME does
BINARY_MESSAGE = bytes([PacketType.MESSAGE])  # begins it in revision 3 if it need not be text

# How a packet begins in a payload of revision 3. Nine digits are more than any body has bytes.
LENGTH = re.compile(rb"([0-9]{1,9}):")
LENGTH_UTF16 = re.compile(rb"((?:[0-9]\0){1,9}):\0")
LENGTH_BINARY = re.compile(rb"([\0\1])([\0-\x09]{1,9})\xff")
TO_ASCII = bytes((number + ord("0")) & 0xFF for number in range(256))
FROM_ASCII = bytes((number - ord("0")) & 0xFF for number in range(256))


def parse_packet(data: bytes, revision: int, *, is_binary: bool) -> Packet:
    """Return the packet that a WebSocket message holds.

    Raises:
        ProtocolError: It holds none.
    """
    if not is_binary:
        return _parse_text(data, revision)
    if revision == 3:
        return _parse_binary(data)
    return Packet(PacketType.MESSAGE, data, is_binary=True)


def encode_packet(packet: Packet, revision: int) -> tuple[bytes, bool]:
    """Return a packet as a WebSocket message, and whether that is binary."""
    if not packet.is_binary:
        return DIGITS[packet.type] + packet.data, False
    if revision == 3:
        return BINARY_MESSAGE + packet.data, True
    return packet.data, True


def _parse_text(data: bytes, revision: int) -> Packet:
    if data.startswith(BASE64):
        return _parse_base64(data, revision)
    packet_type = TYPES.get(data[:1])
    if packet_type is None:
        raise ProtocolError(f"a packet begins with {data[:1]!r}, expected a type from 0 to 6")
    if not data.isascii():
        _decode(data)
    return Packet(packet_type, data[1:])


def _parse_base64(data: bytes, revision: int) -> Packet:
    start = 1
    if revision == 3:
        if data[1:2] != DIGITS[PacketType.MESSAGE]:
            raise ProtocolError(f"a binary packet has type {data[1:2]!r}, expected 4")
        start = 2
    encoded = data[start:].translate(None, LINE_ENDS)
    try:
        decoded = binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error as exc:
        raise ProtocolError(f"a binary packet is not base64: {exc}") from exc
    return Packet(PacketType.MESSAGE, decoded, is_binary=True)


def _parse_binary(data: bytes) -> Packet:
    if not data.startswith(BINARY_MESSAGE):
        raise ProtocolError(f"a binary packet begins with {data[:1]!r}, expected 0x04")
    return Packet(PacketType.MESSAGE, data[1:], is_binary=True)


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise ProtocolError("a text is not UTF-8") from exc


def parse_payload(
    body: bytes, revision: int, *, is_binary: bool = False, max_packets: int = MAX_PACKETS
) -> list[Packet]:
    """Return the packets that a client has posted.

    Args:
        is_binary: The body is binary (`application/octet-stream`), which only revision 3 knows.

    Raises:
        ProtocolError: It is no sequence of packets.
        TooLarge: It has more than `max_packets`.
    """
    if not body:
        raise ProtocolError("a payload is empty")
    if revision == 3:
        cut = _cut_binary if is_binary else _cut_text
        return _parse_each(cut(body), max_packets)
    if body.count(SEPARATOR) >= max_packets:
        raise TooLarge(f"a payload has more than {max_packets} packets")
    return [_parse_text(data, revision) for data in body.split(SEPARATOR)]


def _parse_each(parts: Iterator[Packet], max_packets: int) -> list[Packet]:
    packets: list[Packet] = []
    for packet in parts:
        if len(packets) == max_packets:
            raise TooLarge(f"a payload has more than {max_packets} packets")
        packets.append(packet)
    return packets


def _cut_text(body: bytes) -> Iterator[Packet]:
    """Cut revision 3's text, whose lengths count JavaScript's characters: UTF-16's code units."""
    if body.isascii():
        parts = _cut(body, LENGTH, 1)
    else:
        units = _decode(body).encode("utf-16-le")
        parts = map(_from_utf16, _cut(units, LENGTH_UTF16, 2))
    # An empty one is how an empty payload is written.
    return (_parse_text(data, 3) for data in parts if data)


def _cut(data: bytes, header: re.Pattern[bytes], unit: int) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        match = header.match(data, position)
        if match is None:
            raise ProtocolError("a payload has no length where one is expected")
        position = match.end() + int(match[1][::unit]) * unit
        if position > len(data):
            raise ProtocolError("a payload ends within a packet")
        yield data[match.end() : position]


def _from_utf16(units: bytes) -> bytes:
    try:
        return units.decode("utf-16-le").encode()
    except UnicodeDecodeError as exc:
        raise ProtocolError("a packet ends within a character") from exc


def _cut_binary(body: bytes) -> Iterator[Packet]:
    position = 0
    while position < len(body):
        match = LENGTH_BINARY.match(body, position)
        if match is None:
            raise ProtocolError("a payload has no kind and length where they are expected")
        position = match.end() + int(match[2].translate(TO_ASCII))
        if position > len(body):
            raise ProtocolError("a payload ends within a packet")
        data = body[match.end() : position]
        yield _parse_binary(data) if match[1] == b"\1" else _parse_text(data, 3)


def encode_payload(packets: Sequence[Packet], revision: int, *, binary: bool = False) -> bytes:
    """Return the body that answers a poll.

    Text with U+001E in it is cut there by whoever reads revision 4; JSON has none.

    Args:
        binary: In the binary form, which only revision 3 has, and only clients without `b64=1` read.
    """
    if revision != 3:
        return SEPARATOR.join([_encode_as_text(packet, BASE64) for packet in packets])
    if binary:
        return b"".join([_with_binary_length(packet) for packet in packets])
    return b"".join([_with_length(packet) for packet in packets]) or b"0:"


def _encode_as_text(packet: Packet, base64_prefix: bytes) -> bytes:
    if packet.is_binary:
        return base64_prefix + binascii.b2a_base64(packet.data, newline=False)
    return DIGITS[packet.type] + packet.data


def _with_length(packet: Packet) -> bytes:
    data = _encode_as_text(packet, BASE64 + DIGITS[PacketType.MESSAGE])
    length = len(data) if data.isascii() else len(data.decode().encode("utf-16-le")) // 2
    return b"%d:%b" % (length, data)


def _with_binary_length(packet: Packet) -> bytes:
    data, is_binary = encode_packet(packet, 3)
    return b"%c%b\xff%b" % (is_binary, (b"%d" % len(data)).translate(FROM_ASCII), data)


def encode_open(
    sid: str, *, upgrades: Sequence[str], ping_interval: float, ping_timeout: float, max_payload: int
) -> Packet:
    """Return the first packet of a session.

    Args:
        upgrades: The transports that the client may change to.
        ping_interval: Seconds from one ping to the next.
        ping_timeout: Seconds after which a ping that is not answered ends the session.
        max_payload: Bytes that a body or message of the client may have.
    """
    fields = {
        "sid": sid,
        "upgrades": list(upgrades),
        "pingInterval": round(ping_interval * 1000),
        "pingTimeout": round(ping_timeout * 1000),
        "maxPayload": max_payload,
    }
    return Packet(PacketType.OPEN, _dump(fields))


def _dump(fields: object) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
