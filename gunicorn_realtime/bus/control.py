"""What hubs are told, on a channel that no user can name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ..errors import ProtocolError
from ..protocols.websocket_close import may_be_sent


@dataclass(frozen=True, slots=True)
class Disconnect:
    """End the connections that have all these labels and follow this channel.

    Args:
        labels: Where there are none, any connection matches.
        channel: Its name on the bus; None is any.
        code: Of a WebSocket's close frame.
    """

    labels: tuple[str, ...]
    channel: str | None
    code: int

    def __post_init__(self) -> None:
        if not may_be_sent(self.code):
            raise ValueError(f"a close frame must not have the code {self.code!r}")

    def encode(self) -> bytes:
        return json.dumps({"disconnect": asdict(self)}).encode()


def decode(payload: bytes) -> Disconnect:
    """Read a control message.

    Raises:
        ProtocolError: It is none of this version's.
    """
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError):
        raise ProtocolError("a control message is not JSON") from None
    match fields:
        case {"disconnect": {"labels": [*labels], "channel": None | str() as channel, "code": int(code)}} if (
            all(isinstance(label, str) for label in labels) and may_be_sent(code)
        ):
            return Disconnect(tuple(labels), channel, code)
    raise ProtocolError("a control message is none that this version knows")
