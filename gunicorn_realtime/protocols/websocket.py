"""WebSocket after its handshake, the server's side (RFC 6455, sections 5 to 8; RFC 7692).

From gevent-websocket come the opcodes and the encoder of frame headers. Its reader is not used: it
blocks, takes unmasked frames and knows no limit; nor are its errors, which are a socket's. Importing
it loads gevent, so this is for the hub; what a view needs is in `websocket_handshake`.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from geventwebsocket.websocket import Header, WebSocket  # type: ignore[import-untyped]

from ..errors import ProtocolError, TooLarge
from .websocket_close import CloseCode, may_be_sent
from .websocket_deflate import MIN_COMPRESSED_SIZE, TAIL, Deflate, Inflater

MAX_MESSAGE_SIZE = 1024 * 1024  # bytes

# Empty fragments add nothing to a message's size, so they are limited by number. Autobahn sends
# 65,536, none of them empty.
MAX_FRAGMENTS = 128 * 1024

MAX_CONTROL_SIZE = 125  # bytes (section 5.5)


class Opcode(IntEnum):
    """https://www.iana.org/assignments/websocket/#opcode"""

    CONTINUATION = WebSocket.OPCODE_CONTINUATION
    TEXT = WebSocket.OPCODE_TEXT
    BINARY = WebSocket.OPCODE_BINARY
    CLOSE = WebSocket.OPCODE_CLOSE
    PING = WebSocket.OPCODE_PING
    PONG = WebSocket.OPCODE_PONG


@dataclass(frozen=True, slots=True)
class TextMessage:
    data: bytes  # valid UTF-8


@dataclass(frozen=True, slots=True)
class BinaryMessage:
    data: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    code: int = CloseCode.NO_STATUS_RECEIVED
    reason: str = ""


Event = TextMessage | BinaryMessage | Ping | Pong | Close


class InvalidPayload(ProtocolError):
    """A text that is not UTF-8, or a compressed message that cannot be inflated."""


def close_code(error: ProtocolError) -> CloseCode:
    """Return the code of the close frame that answers an error of the parser."""
    match error:
        case InvalidPayload():
            return CloseCode.INVALID_PAYLOAD
        case TooLarge():
            return CloseCode.MESSAGE_TOO_BIG
        case _:
            return CloseCode.PROTOCOL_ERROR


# A frame's first two bytes (section 5.2).
FIN: int = Header.FIN_MASK
RSV1: int = Header.RSV0_MASK  # gevent-websocket counts from 0
RESERVED: int = Header.HEADER_FLAG_MASK
OPCODE: int = Header.OPCODE_MASK
CONTROL = 0x08  # the bit that the opcodes of control frames have
MASKED: int = Header.MASK_MASK
LENGTH: int = Header.LENGTH_MASK

MASK_SIZE = 4  # bytes
EXTENDED_LENGTH_SIZES = {126: 2, 127: 8}  # bytes that follow instead, if the length is one of these

DATA_OPCODES = {Opcode.CONTINUATION, Opcode.TEXT, Opcode.BINARY}

# How a frame may begin: only data frames can be fragments, without FIN ...
FIRST_BYTES = frozenset({FIN | opcode for opcode in Opcode} | DATA_OPCODES)
# ... and with permessage-deflate, a message's first frame may have RSV1 (RFC 7692, section 6).
FIRST_BYTES_DEFLATE = FIRST_BYTES | {
    fin | RSV1 | opcode for fin in (0, FIN) for opcode in (Opcode.TEXT, Opcode.BINARY)
}


class Parser:
    """Cut a client's bytes into events: feed it bytes, then iterate `events()`.

    While nothing is pending it is one small object. After a `Close` or an error, what is fed is
    dropped. Limits in time are the caller's: how often a client pings, how long a message takes.

    Args:
        max_message_size: Bytes of one message, compressed as well as inflated.
        deflate: What was agreed on, if the client may compress.
    """

    __slots__ = (
        "_buffer",
        "_first_bytes",
        "_frame",
        "_is_done",
        "_max_message_size",
        "_message",
        "_position",
    )

    def __init__(self, max_message_size: int = MAX_MESSAGE_SIZE, deflate: Deflate | None = None) -> None:
        self._max_message_size = max_message_size
        self._first_bytes = FIRST_BYTES if deflate is None else FIRST_BYTES_DEFLATE
        self._buffer = b""
        self._position = 0  # of what was not consumed, in the buffer
        self._frame: _Frame | None = None  # whose payload is arriving
        self._message: _Message | None = None  # whose frames are arriving
        self._is_done = False

    @property
    def pending_size(self) -> int:
        """Bytes held of what has not arrived whole; 0 between messages."""
        return len(self._buffer) + (len(self._message.data) if self._message else 0)

    def feed(self, data: bytes) -> None:
        if not self._is_done:
            self._buffer += data

    def events(self) -> Iterator[Event]:
        """Give the events that have arrived.

        Raises:
            ProtocolError: The client broke the protocol; `close_code` says how to tell it.
        """
        try:
            while not self._is_done and (event := self._next_event()) is not None:
                self._is_done = isinstance(event, Close)
                yield event
        except ProtocolError:
            self._is_done = True
            raise
        finally:
            self._forget()

    def _forget(self) -> None:
        """Release what is no longer needed."""
        self._buffer = self._buffer[self._position :]
        self._position = 0
        if self._is_done:
            self._buffer = b""
            self._frame = self._message = None

    def _next_event(self) -> Event | None:
        """Return the next event, or None if the rest of it has not arrived yet."""
        while (frame := self._frame or self._read_header()) is not None:
            payload = self._take_payload(frame)
            if frame.message is None:
                return _read_control(frame.opcode, payload)
            frame.message.add(payload)
            if frame.missing:
                return None
            if frame.is_final:
                self._message = None
                return frame.message.finish()
        return None

    def _read_header(self) -> _Frame | None:
        buffer, start = self._buffer, self._position
        if len(buffer) < start + 2:
            return None
        first, second = buffer[start], buffer[start + 1]
        self._check_start(first, second)
        length = second & LENGTH
        mask_start = 2 + EXTENDED_LENGTH_SIZES.get(length, 0)
        header = buffer[start : start + mask_start + MASK_SIZE]
        if len(header) < mask_start + MASK_SIZE:
            return None
        if mask_start > 2:
            length = _read_extended_length(header[2:mask_start])
        end = start + len(header)
        if first & CONTROL and len(buffer) < end + length:
            return None  # a control frame is not worth reading in parts
        self._position = end
        return _Frame(first, header[mask_start:], length, self._message_of(first, length))

    def _check_start(self, first: int, second: int) -> None:
        if first not in self._first_bytes:
            raise ProtocolError(_what_is_wrong(first))
        if not second & MASKED:
            raise ProtocolError("a frame of the client is not masked")
        if first & CONTROL:
            if second & LENGTH > MAX_CONTROL_SIZE:
                raise ProtocolError(f"a control frame has more than {MAX_CONTROL_SIZE} bytes")
        elif first & OPCODE:
            if self._message is not None:
                raise ProtocolError("a message begins before the last frame of another")
        elif self._message is None:
            raise ProtocolError("a frame continues no message")

    def _message_of(self, first: int, length: int) -> _Message | None:
        """Return the message that a frame is a part of; a control frame is not."""
        if first & CONTROL:
            return None
        if self._message is None:
            self._message = _Message(first & OPCODE, self._max_message_size, bool(first & RSV1))
        self._message.announce(length)
        return self._message

    def _take_payload(self, frame: _Frame) -> bytes:
        """Return the part of a frame's payload that has arrived."""
        start = self._position
        payload = frame.unmask(self._buffer[start : start + frame.missing])
        self._position += len(payload)
        self._frame = frame if frame.missing else None
        return payload


class _Frame:
    """A frame whose payload is arriving."""

    __slots__ = ("is_final", "mask", "message", "missing", "opcode")

    def __init__(self, first: int, mask: bytes, length: int, message: _Message | None) -> None:
        self.opcode = first & OPCODE
        self.is_final = bool(first & FIN)
        self.mask = mask
        self.missing = length  # bytes of the payload that have not arrived
        self.message = message  # None for a control frame

    def unmask(self, data: bytes) -> bytes:
        payload = _apply_mask(self.mask, data)
        self.missing -= len(data)
        if self.missing:
            turn = len(data) % MASK_SIZE
            self.mask = self.mask[turn:] + self.mask[:turn]
        return payload


class _Message:
    """A data message whose frames are arriving."""

    __slots__ = ("announced", "data", "fragments", "inflater", "max_size", "opcode", "undecoded")

    def __init__(self, opcode: int, max_size: int, is_compressed: bool) -> None:
        self.opcode = opcode
        self.max_size = max_size
        self.inflater = Inflater() if is_compressed else None
        self.data = bytearray()
        self.undecoded = b""  # the beginning of a character, at the end of a text
        self.announced = 0  # bytes in its frames so far
        self.fragments = 0

    def announce(self, length: int) -> None:
        """Check the limits for a frame before its payload arrives."""
        self.announced += length
        if self.announced > self.max_size:
            raise TooLarge(f"a message has {self.announced} bytes, more than {self.max_size}")
        self.fragments += 1
        if self.fragments > MAX_FRAGMENTS:
            raise TooLarge(f"a message has more than {MAX_FRAGMENTS} fragments")

    def add(self, payload: bytes) -> None:
        """Take a part of a frame's payload, and judge it as far as it goes."""
        try:
            if self.inflater is not None:
                # One byte too many, but no more, shows that there would be too many.
                payload = self.inflater.inflate(payload, self.max_size - len(self.data) + 1)
            if self.opcode == Opcode.TEXT:
                self.undecoded = _check_text(self.undecoded + payload)
        except zlib.error as exc:
            raise InvalidPayload("a compressed message cannot be inflated") from exc
        except UnicodeDecodeError as exc:
            raise InvalidPayload("a text is not UTF-8") from exc
        self.data += payload
        if len(self.data) > self.max_size:
            raise TooLarge(f"a compressed message inflates to more than {self.max_size} bytes")

    def finish(self) -> TextMessage | BinaryMessage:
        if self.inflater is not None:
            self.add(TAIL)
        if self.undecoded:
            raise InvalidPayload("a text ends within a character")
        data = bytes(self.data)
        return TextMessage(data) if self.opcode == Opcode.TEXT else BinaryMessage(data)


def _check_text(text: bytes) -> bytes:
    """Return what is there of a last character that is incomplete."""
    if text.isascii():
        return b""
    _, length = codecs.utf_8_decode(text, "strict", False)
    return text[length:]


def _what_is_wrong(first: int) -> str:
    opcode = first & OPCODE
    if first & RESERVED:
        return f"a frame begins with {first:#04x}: it has a reserved bit"
    if opcode not in set(Opcode):
        return f"a frame has opcode {opcode}, which is reserved"
    return f"a control frame is a fragment: {Opcode(opcode).name}"


def _read_extended_length(encoded: bytes) -> int:
    length = int.from_bytes(encoded)
    if length <= (MAX_CONTROL_SIZE if len(encoded) == 2 else 0xFFFF):
        raise ProtocolError(f"a frame's length, {length}, takes more bytes than it needs")
    if length >> 63:
        raise ProtocolError(f"a frame's length, {length:#x}, has its highest bit set")
    return length


def _read_control(opcode: int, payload: bytes) -> Ping | Pong | Close:
    if opcode == Opcode.PING:
        return Ping(payload)
    if opcode == Opcode.PONG:
        return Pong(payload)
    return _read_close(payload)


def _read_close(payload: bytes) -> Close:
    if not payload:
        return Close()
    code = int.from_bytes(payload[:2])  # of a single byte, too small to be one
    if not may_be_sent(code):
        raise ProtocolError(f"a close frame has an invalid code: {payload[:2].hex()}")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError as exc:
        raise InvalidPayload("the reason in a close frame is not UTF-8") from exc


def _apply_mask(mask: bytes, data: bytes) -> bytes:
    # As one number, since Python has no other exclusive or of many bytes at a time.
    size = len(data)
    key = (mask * (size // MASK_SIZE + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def encode_text(data: bytes, deflate: Deflate | None = None) -> bytes:
    """Return a text message; what is not UTF-8 is replaced by U+FFFD, as a client would hang up.

    Args:
        deflate: What was agreed on; equal parameters give equal bytes. A message is not compressed
            if it is short, or gains nothing.
    """
    if not data.isascii():
        data = data.decode("utf-8", "replace").encode()
    return _encode_message(Opcode.TEXT, data, deflate)


def encode_binary(data: bytes, deflate: Deflate | None = None) -> bytes:
    """Return a binary message, compressed as a text is."""
    return _encode_message(Opcode.BINARY, data, deflate)


def _encode_message(opcode: Opcode, data: bytes, deflate: Deflate | None) -> bytes:
    if deflate is not None and len(data) >= MIN_COMPRESSED_SIZE:
        compressed = deflate.compress(data)
        if len(compressed) < len(data):
            return encode_frame(opcode, compressed, is_compressed=True)
    return encode_frame(opcode, data)


def encode_ping(payload: bytes = b"") -> bytes:
    return encode_frame(Opcode.PING, payload)


def encode_pong(payload: bytes) -> bytes:
    return encode_frame(Opcode.PONG, payload)


def encode_close(code: int = CloseCode.NO_STATUS_RECEIVED, reason: str = "") -> bytes:
    """Return a close frame; given a `Close` event's code, the answer to it.

    Args:
        code: NO_STATUS_RECEIVED leaves it out, and the reason.
        reason: Cut to the 123 bytes of UTF-8 that fit.
    """
    if code == CloseCode.NO_STATUS_RECEIVED:
        return encode_frame(Opcode.CLOSE, b"")
    if not may_be_sent(code):
        raise ValueError(f"a close frame must not have the code {code}")
    encoded = reason.encode("utf-8", "replace")[: MAX_CONTROL_SIZE - 2]
    fitting = encoded.decode("utf-8", "ignore").encode()
    return encode_frame(Opcode.CLOSE, code.to_bytes(2) + fitting)


def encode_frame(
    opcode: Opcode, payload: bytes, *, is_final: bool = True, is_compressed: bool = False, mask: bytes = b""
) -> bytes:
    """Return a frame.

    Args:
        mask: Four bytes in a frame from a client, none in one from a server.
    """
    if opcode & CONTROL and len(payload) > MAX_CONTROL_SIZE:
        raise ValueError(f"a control frame has {len(payload)} bytes, more than {MAX_CONTROL_SIZE}")
    header = Header.encode_header(is_final, opcode, mask, len(payload), RSV1 if is_compressed else 0)
    return bytes(header) + (_apply_mask(mask, payload) if mask else payload)


def split_frames(data: bytes | bytearray) -> tuple[list[tuple[int, bytes]], int]:
    """Cut what the functions above have written, uncompressed.

    Returns:
        The whole frames' opcodes and payloads, and how many bytes they take.
    """
    frames: list[tuple[int, bytes]] = []
    end = 0
    while len(data) - end >= 2:
        length = data[end + 1] & LENGTH
        start = end + 2 + (extended := EXTENDED_LENGTH_SIZES.get(length, 0))
        if extended:
            if len(data) < start:
                break
            length = int.from_bytes(data[end + 2 : start])
        if len(data) - start < length:
            break
        frames.append((data[end] & OPCODE, bytes(data[start : start + length])))
        end = start + length
    return frames, end
