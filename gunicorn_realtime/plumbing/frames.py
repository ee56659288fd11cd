"""Frames: what one message on a pair of sockets holds. Nothing in them is ever unpickled.

    protocol  1 byte   raised whenever the meaning of a frame changes
    kind      1 byte
    sizes     2 × 4    bytes of the fields, and of the head
    fields             JSON object
    head               the response's head (a handover), the request's environ (an event)
    rest               what was read of the connection beyond the request's head

Numbers are in network order. A hub outlives workers, so the two may be of different versions of
this package: hence the protocol's number.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ..errors import ProtocolError, TooLarge

PROTOCOL = 4
HEADER = struct.Struct("!BBII")  # protocol, kind, size of the fields, size of the head

# The largest SEQPACKET message that Linux takes with its default buffer is 212,960 bytes.
MAX_FRAME_SIZE = 200 * 1024


class Kind(IntEnum):
    HANDOVER = 1  # worker to hub: a client's socket
    ANNOUNCE = 2  # worker to hub: the bus of the application
    HAND_BACK = 3  # hub to worker: a client's socket, to be kept alive
    EVENT = 4  # hub to event thread: one end of a pair for an event and its answer


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    fields: Mapping[str, Any]
    head: bytes = b""
    rest: bytes = b""

    def encode(self) -> bytes:
        """Return the frame's bytes.

        Raises:
            TooLarge: They would not fit into one message.
        """
        fields = json.dumps(self.fields, separators=(",", ":")).encode()
        data = HEADER.pack(PROTOCOL, self.kind, len(fields), len(self.head)) + fields + self.head + self.rest
        if len(data) > MAX_FRAME_SIZE:
            raise TooLarge(f"a frame has {len(data)} bytes, more than {MAX_FRAME_SIZE}")
        return data

    @classmethod
    def decode(cls, data: bytes) -> Frame:
        """Read one frame.

        Raises:
            ProtocolError: It is cut, or was made by another version of this package.
        """
        if len(data) < HEADER.size:
            raise ProtocolError(f"a frame of {len(data)} bytes is shorter than its header")
        protocol, kind, fields_size, head_size = HEADER.unpack_from(data)
        if protocol != PROTOCOL:
            raise ProtocolError(f"a frame of protocol {protocol}, not {PROTOCOL}: restart gunicorn")
        fields_end = HEADER.size + fields_size
        head_end = fields_end + head_size
        if head_end > len(data):
            raise ProtocolError(f"a frame of {len(data)} bytes says that it has {head_end}")
        try:
            fields = json.loads(data[HEADER.size : fields_end])
            kind = Kind(kind)
        except (ValueError, RecursionError) as exc:
            raise ProtocolError(f"a frame cannot be read: {exc}") from None
        if not isinstance(fields, dict):
            raise ProtocolError("a frame's fields are not a JSON object")
        return cls(kind, fields, data[fields_end:head_end], data[head_end:])
