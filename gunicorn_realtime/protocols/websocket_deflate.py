"""Compressed WebSocket messages: the permessage-deflate extension (RFC 7692, section 7).

Neither side keeps its window from one message to the next. So a message is compressed once for
all clients, and a connection holds an inflater only while a compressed message is arriving.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

NAME = "permessage-deflate"

# Chat-like JSON of this size shrinks by a third; below, it fits its packet anyway.
MIN_COMPRESSED_SIZE = 256  # bytes

MAX_WINDOW_BITS = 15
MIN_WINDOW_BITS = 9  # zlib cannot deflate with 8

# What ends the output of a sync flush, and is not sent (section 7.2.1).
TAIL = b"\x00\x00\xff\xff"

# Inflating copies what it has not consumed, so it is given little at a time.
SLICE_SIZE = 16 * 1024  # bytes

# An offer's parameters and what they may be; None is no value (section 7.1).
WINDOW_BITS = {str(bits) for bits in range(8, MAX_WINDOW_BITS + 1)}
PARAMETERS: dict[str, set[str | None]] = {
    "server_no_context_takeover": {None},
    "client_no_context_takeover": {None},
    "server_max_window_bits": {*WINDOW_BITS - {"8"}},
    "client_max_window_bits": {None, *WINDOW_BITS},
}


@dataclass(frozen=True, slots=True)
class Deflate:
    """What was agreed with a client; its field is an argument again after crossing processes.

    Attributes:
        server_max_window_bits: The base-2 logarithm of the window that the client holds for us,
            9 to 15, or None if it set no limit.
    """

    server_max_window_bits: int | None = None

    @property
    def response(self) -> str:
        """The extension in the handshake's response.

        The server may name both *_no_context_takeover though the client did not, and that binds
        the client (sections 7.1.1.1 and 7.1.1.2). It may leave client_max_window_bits out: a
        window of any size is inflated, and held only while a message is arriving.
        """
        response = f"{NAME}; server_no_context_takeover; client_no_context_takeover"
        if self.server_max_window_bits is not None:
            response += f"; server_max_window_bits={self.server_max_window_bits}"
        return response

    def compress(self, data: bytes) -> bytes:
        """Return a message's compressed payload, the same for equal parameters."""
        # A window larger than the message costs time and saves nothing.
        bits = max(MIN_WINDOW_BITS, len(data).bit_length())
        limit = self.server_max_window_bits or MAX_WINDOW_BITS
        compressor = zlib.compressobj(wbits=-min(bits, limit))
        compressed = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return compressed.removesuffix(TAIL)


def negotiate(offer: Sequence[tuple[str, str | None]]) -> Deflate | None:
    """Answer one offer of permessage-deflate.

    Args:
        offer: Its parameters, each with its value or None.

    Returns:
        What to agree on, or None to decline: section 7.1 wants that for a parameter that is
        unknown, repeated, or has a value it cannot have.
    """
    parameters = dict(offer)
    is_unique = len(parameters) == len(offer)
    if not is_unique or not all(value in PARAMETERS.get(name, ()) for name, value in offer):
        return None
    bits = parameters.get("server_max_window_bits")
    return Deflate(None if bits is None else int(bits))


class Inflater:
    """Inflates one message as it arrives."""

    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(-MAX_WINDOW_BITS)

    def inflate(self, data: bytes, max_size: int) -> bytes:
        """Return what the message's next bytes inflate to.

        Args:
            data: The next bytes; behind the last ones, `TAIL`.
            max_size: How many bytes may come out, at least one. When they have, it stops.

        Raises:
            zlib.error: The data was not deflated, or with a window from an earlier message.
        """
        inflated = bytearray()
        for start in range(0, len(data), SLICE_SIZE):
            rest = data[start : start + SLICE_SIZE]
            while rest and len(inflated) < max_size:
                inflated += self._stream.decompress(rest, max_size - len(inflated))
                rest = self._take_unused()
        return bytes(inflated)

    def _take_unused(self) -> bytes:
        """Return what follows a block that has BFINAL set: more blocks may (section 7.2.1)."""
        unused = self._stream.unused_data
        if self._stream.eof:
            self._stream = zlib.decompressobj(-MAX_WINDOW_BITS)
        return unused
