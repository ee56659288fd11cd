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
        labels: Any connection has no labels at all.
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
        fields = json.loads(payload)["disconnect"]
        return Disconnect(tuple(fields["labels"]), fields["channel"], fields["code"])
    except (ValueError, RecursionError, LookupError, TypeError) as exc:
        raise ProtocolError(f"a control message cannot be read: {exc!r}") from None
