"""Who is there: a member in a channel, and how a bus is told."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

# Room for an email address or a UUID; a name, not content.
MAX_MEMBER_SIZE = 200  # bytes

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Presence:
    """A member in a channel.

    Args:
        channel: Its name on the bus, prefix included.
        member: 1 to 200 bytes, without control characters.
        history, ttl: The channel's rules, by which it is published that the member joins or leaves.

    Raises:
        ValueError: No member can have that name.
    """

    channel: str
    member: str
    history: int = field(default=0, compare=False)
    ttl: float = field(default=0.0, compare=False)  # seconds

    def __post_init__(self) -> None:
        if not self.member:
            raise ValueError("a member's name is empty")
        if CONTROL_CHARACTERS.search(self.member):
            raise ValueError(f"member {self.member[:40]!r} has control characters")
        try:
            size = len(self.member.encode())
        except UnicodeEncodeError as exc:
            raise ValueError(f"member {self.member[:40]!r} is not valid Unicode") from exc
        if size > MAX_MEMBER_SIZE:
            raise ValueError(f"member {self.member[:40]!r}… has {size} bytes, more than {MAX_MEMBER_SIZE}")


@dataclass(frozen=True, slots=True)
class PresenceTimes:
    """How long the bus takes a member for present, in seconds.

    Args:
        lifetime: Without a word of the hub that holds its connections.
        linger: After the last of them has ended, in which it may come back in silence.
    """

    lifetime: float
    linger: float


def encode_member(member: str) -> bytes:
    """Return a member as the bus keeps it: ready to be put into a message."""
    return json.dumps(member, ensure_ascii=False).encode()


def decode_member(data: bytes) -> str:
    member: str = json.loads(data)
    return member
