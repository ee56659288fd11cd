"""RESP2, the protocol of Redis, as a server speaks it.

https://redis.io/docs/latest/develop/reference/protocol-spec
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator

from ..errors import ProtocolError, TooLarge

# Redis' own limit. A hub that returns subscribes to all its channels in one command.
MAX_ARGUMENTS = 1024 * 1024

# All arguments of one command: a hundred thousand channel names of the longest kind are 20 MB.
MAX_COMMAND_SIZE = 64 * 1024 * 1024  # bytes

# Redis' own limit, for a line that somebody types; "*" and a count fit as well.
MAX_LINE_SIZE = 64 * 1024  # bytes

MAX_BULK_SIZE = 1024 * 1024  # bytes

LINE_BREAK = re.compile("[\r\n]+")


class CommandParser:
    """Cut a client's bytes into commands: feed it bytes, then iterate `commands()`.

    A command is the list of its arguments, the command's name included; it arrives as an array of
    bulk strings, or inline as a line of words, quoted as in a shell.

    Args:
        max_bulk_size: The longest argument, in bytes.
    """

    def __init__(self, max_bulk_size: int = MAX_BULK_SIZE) -> None:
        self._max_bulk_size = max_bulk_size
        self._buffer = bytearray()
        self._arguments: list[bytes] = []
        self._missing = 0  # arguments of the array that have not arrived
        self._bulk_size: int | None = None  # of the argument that is arriving
        self._command_size = 0  # bytes in the arguments announced so far

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def commands(self) -> Iterator[list[bytes]]:
        """Give the commands that have arrived.

        Raises:
            ProtocolError: The client sent no RESP; nothing can be read after it.
        """
        while (command := self._next_command()) is not None:
            if command:  # an empty line and an empty array ask for nothing
                yield command

    def _next_command(self) -> list[bytes] | None:
        if not self._missing:
            line = self._take_line()
            if line is None:
                return None
            if not line.startswith(b"*"):
                return _split_inline(line)
            self._start_array(line)
        while self._missing:
            argument = self._take_bulk_string()
            if argument is None:
                return None
            self._arguments.append(argument)
            self._missing -= 1
        command, self._arguments = self._arguments, []
        return command

    def _start_array(self, line: bytes) -> None:
        count = _read_length("an array", line)
        if count > MAX_ARGUMENTS:
            raise TooLarge(f"a command has {count} arguments, more than {MAX_ARGUMENTS}")
        self._missing = max(count, 0)  # Redis takes a null array for an empty one
        self._command_size = 0

    def _take_bulk_string(self) -> bytes | None:
        if self._bulk_size is None:
            line = self._take_line()
            if line is None:
                return None
            self._bulk_size = self._read_bulk_size(line)
        size = self._bulk_size
        end = size + 2
        if len(self._buffer) < end:
            return None
        if self._buffer[size:end] != b"\r\n":
            raise ProtocolError(f"a bulk string of {size} bytes is not followed by CRLF")
        argument = bytes(self._buffer[:size])
        del self._buffer[:end]
        self._bulk_size = None
        return argument

    def _read_bulk_size(self, line: bytes) -> int:
        if not line.startswith(b"$"):
            raise ProtocolError(f"expected '$', got {line[:1].decode('latin-1')!r}")
        size = _read_length("a bulk string", line)
        if size < 0:
            raise ProtocolError("a command's argument is null")
        if size > self._max_bulk_size:
            raise TooLarge(f"an argument has {size} bytes, more than {self._max_bulk_size}")
        self._command_size += size
        if self._command_size > MAX_COMMAND_SIZE:
            raise TooLarge(f"a command's arguments have more than {MAX_COMMAND_SIZE} bytes")
        return size

    def _take_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", 0, MAX_LINE_SIZE + 1)
        if end < 0:
            if len(self._buffer) > MAX_LINE_SIZE:
                raise TooLarge(f"a line has more than {MAX_LINE_SIZE} bytes")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def _read_length(name: str, line: bytes) -> int:
    digits = line[1:].removesuffix(b"\r")
    if line.endswith(b"\r") and digits == b"-1":
        return -1
    # More than ten digits are beyond any limit, and costly to read.
    if not line.endswith(b"\r") or not digits.isdigit() or len(digits) > 10:
        raise ProtocolError(f"the length of {name} is {line[1:20].decode('latin-1')!r}")
    return int(digits)


def _split_inline(line: bytes) -> list[bytes]:
    try:
        return [word.encode("latin-1") for word in shlex.split(line.decode("latin-1"))]
    except ValueError:
        raise ProtocolError("unbalanced quotes in an inline command") from None


# Replies. An array's items are encoded replies, so an array of bulk strings is also a command.

NULL = b"$-1\r\n"


def encode_simple_string(text: str) -> bytes:
    return b"+%b\r\n" % _one_line(text)


def encode_error(text: str) -> bytes:
    """Return an error; by custom its first word is a code in capitals: "ERR no such key"."""
    return b"-%b\r\n" % _one_line(text)


def encode_integer(number: int) -> bytes:
    return b":%d\r\n" % number


def encode_bulk_string(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def encode_array(items: Iterable[bytes]) -> bytes:
    items = list(items)
    return b"*%d\r\n%b" % (len(items), b"".join(items))


def encode_push(kind: bytes, channel: bytes | None, item: bytes) -> bytes:
    """Return what a client in subscribe mode is told about a channel."""
    encoded_channel = NULL if channel is None else encode_bulk_string(channel)
    return encode_array((encode_bulk_string(kind), encoded_channel, item))


def _one_line(text: str) -> bytes:
    return LINE_BREAK.sub(" ", text).encode("utf-8", "surrogateescape")
