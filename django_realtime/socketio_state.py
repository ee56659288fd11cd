"""What is kept of a Socket.IO client between two of its events, and what an event carries."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Self

from gunicorn_realtime.bus.message import Emission
from gunicorn_realtime.plumbing.events import Event
from gunicorn_realtime.protocols.socketio import decode_arguments

# A client that never answers would fill the state; the oldest is forgotten.
MAX_ACKS = 100


@dataclass(slots=True)
class KeptState:
    """One namespace's part of a connection's state.

    Args:
        state: The site's.
        acks: Names of the methods that wait for the client to acknowledge, by the id as text, as JSON has it.
        next_ack: The id of the next.
        is_over: The client is not in the namespace any more.
        others: The parts of other namespaces.
    """

    namespace: str = "/"
    state: dict[str, Any] = field(default_factory=dict)
    acks: dict[str, str] = field(default_factory=dict)
    next_ack: int = 0
    is_over: bool = False
    others: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, text: str, namespace: str) -> Self:
        parts = json.loads(text)
        part = parts.pop(namespace, {})
        return cls(
            namespace, part.get("state", {}), part.get("acks", {}), part.get("next_ack", 0), others=parts
        )

    def dump(self) -> dict[str, Any]:
        """Return the whole connection's state."""
        fields = {"state": self.state, "acks": self.acks, "next_ack": self.next_ack}
        part = {name: value for name, value in fields.items() if value}
        return {**self.others, self.namespace: part} if part and not self.is_over else self.others

    def expect(self, method: str) -> int:
        """Note that a method waits for the client to acknowledge, and return by which id."""
        packet_id = self.next_ack
        self.next_ack += 1
        self.acks[str(packet_id)] = method
        if len(self.acks) > MAX_ACKS:
            del self.acks[next(iter(self.acks))]
        return packet_id


def arguments_of(event: Event) -> list[Any]:
    """Return what a client has sent: an event's name and arguments, or those of an acknowledgement.

    Raises:
        ProtocolError: It can't be read, though the hub has let it pass.
    """
    return decode_arguments(*Emission(tuple(event.details["sizes"])).split(event.data))
