"""The body of an HTTP/1.1 request, of a known length or chunked (RFC 9112, sections 6 and 7)."""

from __future__ import annotations

from ..errors import ProtocolError, TooLarge

# A chunk's size in hexadecimal digits, and its extensions, which mean nothing here.
MAX_SIZE_LINE = 256  # bytes
MAX_TRAILERS_SIZE = 8 * 1024  # bytes

LINE_BREAK = b"\r\n"
HEXADECIMAL = frozenset(b"0123456789abcdefABCDEF")
MAX_SIZE_DIGITS = 15


class BodyReader:
    """Takes a body in whatever pieces it comes: feed it until it is complete.

    Args:
        length: Bytes of the body; None if it is chunked.
        max_size: Bytes of the largest body that is taken.

    Attributes:
        body: What has come of it.
        rest: What came behind it.

    Raises:
        TooLarge: It has more than `max_size` bytes.
    """

    def __init__(self, length: int | None, max_size: int) -> None:
        self.body = bytearray()
        self.rest = b""
        self._max_size = max_size
        self._is_chunked = length is None
        self._missing = 0 if length is None else length  # bytes of the body or of the present chunk
        self._buffer = bytearray()
        self._is_at_break = False  # a chunk's data have come, and not yet the line break behind them
        self._is_last = False  # the last chunk has come, and its trailers follow
        self._trailers_size = 0
        self._check_size(self._missing)
        self.is_complete = length == 0

    def feed(self, data: bytes) -> None:
        """Take more of it.

        Raises:
            ProtocolError: It is no chunked body.
            TooLarge: It is more than may come.
        """
        if self.is_complete:
            self.rest += data
            return
        self._buffer += data
        position = 0
        while not self.is_complete:
            if self._missing:
                part = self._buffer[position : position + self._missing]
                self.body += part
                self._missing -= len(part)
                position += len(part)
                if self._missing:
                    break
                self.is_complete = not self._is_chunked
                continue
            end = self._buffer.find(LINE_BREAK, position, position + MAX_TRAILERS_SIZE)
            if end < 0:
                if len(self._buffer) - position > MAX_SIZE_LINE:
                    raise ProtocolError("a chunk's size is not followed by a line break")
                break
            line = bytes(self._buffer[position:end])
            position = end + len(LINE_BREAK)
            self._take_line(line)
        del self._buffer[:position]
        if self.is_complete:
            self.rest = bytes(self._buffer)
            self._buffer.clear()

    def _take_line(self, line: bytes) -> None:
        """Act on a line between chunks: a chunk's size, the break behind its data, or a trailer."""
        if self._is_last:
            self._trailers_size += len(line)
            if self._trailers_size > MAX_TRAILERS_SIZE:
                raise TooLarge(f"trailers have more than {MAX_TRAILERS_SIZE} bytes")
            self.is_complete = not line
            return
        if self._is_at_break:
            if line:
                raise ProtocolError("a chunk has more bytes than its size says")
            self._is_at_break = False
            return
        digits = line.partition(b";")[0].strip(b" \t")
        if not digits or len(digits) > MAX_SIZE_DIGITS or not HEXADECIMAL.issuperset(digits):
            raise ProtocolError(f"a chunk's size is {line[:20]!r}")
        self._missing = int(digits, 16)
        self._is_last = not self._missing
        self._is_at_break = not self._is_last
        self._check_size(len(self.body) + self._missing)

    def _check_size(self, size: int) -> None:
        if size > self._max_size:
            raise TooLarge(f"a body has {size} bytes, more than {self._max_size}")
