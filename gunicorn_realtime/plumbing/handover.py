"""The three things that cross between workers and hubs, as frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from ..bus.address import BusAddress
from ..bus.channel import Channel, SlowClient
from ..bus.presence import Presence
from ..errors import ProtocolError
from .frames import Frame, Kind
from .offload import Events, Offload

# What socket.accept() gives and gunicorn keeps: (host, port, ...) or, of a Unix socket, its path.
Address = tuple[Any, ...] | str


@dataclass(frozen=True, slots=True)
class Handover:
    """A connection on its way to a hub.

    Args:
        offload: What the application asked for.
        client, server: Addresses of both ends, as gunicorn knows them.
        counted: The client's address counts towards the limit per address (it is no proxy).
        keep_alive: The connection may be handed back after a complete answer.
        head: Status line and headers of the response, without those that frame it (Connection,
            Transfer-Encoding) and without the empty line: the engine adds them.
        rest: What was read of the connection beyond the request's head.
        environ: Of the request, for event calls: JSON; empty if there are none.
    """

    offload: Offload
    client: Address
    server: Address
    counted: bool
    keep_alive: bool
    head: bytes
    rest: bytes
    environ: str = ""

    def frame(self) -> Frame:
        fields = {
            "engine": self.offload.engine,
            "channels": [astuple(channel) for channel in self.offload.followed],
            "cursor": self.offload.cursor,
            "bus": [self.offload.bus.url, self.offload.bus.prefix],
            "options": self.offload.options,
            "particulars": self.offload.particulars,
            "labels": self.offload.labels,
            "expires": self.offload.expires,
            "events": self.offload.events and astuple(self.offload.events),
            "environ": self.environ,
            "presence": self.offload.presence and astuple(self.offload.presence),
            "session": self.offload.session,
            "client": self.client,
            "server": self.server,
            "counted": self.counted,
            "keep_alive": self.keep_alive,
        }
        return Frame(Kind.HANDOVER, fields, self.head, self.rest)

    @classmethod
    def from_frame(cls, frame: Frame) -> Handover:
        fields = frame.fields
        try:
            offload = Offload(
                fields["engine"],
                tuple(map(channel_from, fields["channels"])),
                BusAddress(*fields["bus"]),
                fields["options"],
                fields["cursor"],
                fields["particulars"],
                tuple(fields["labels"]),
                fields["expires"],
                _events_from(fields["events"]),
                fields["presence"] and Presence(*fields["presence"]),
                fields["session"],
            )
            return cls(
                offload,
                _address(fields["client"]),
                _address(fields["server"]),
                fields["counted"],
                fields["keep_alive"],
                frame.head,
                frame.rest,
                fields["environ"],
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise ProtocolError(f"a handover lacks {exc}") from None


@dataclass(frozen=True, slots=True)
class HandBack:
    """A connection on its way back to a worker, reusable, with what was read of its next request."""

    client: Address
    server: Address
    rest: bytes

    def frame(self) -> Frame:
        return Frame(Kind.HAND_BACK, {"client": self.client, "server": self.server}, rest=self.rest)

    @classmethod
    def from_frame(cls, frame: Frame) -> HandBack:
        try:
            return cls(_address(frame.fields["client"]), _address(frame.fields["server"]), frame.rest)
        except (KeyError, TypeError) as exc:
            raise ProtocolError(f"a hand-back lacks {exc}") from None


def announcement(bus: BusAddress) -> Frame:
    return Frame(Kind.ANNOUNCE, {"bus": [bus.url, bus.prefix]})


def announced_bus(frame: Frame) -> BusAddress:
    try:
        return BusAddress(*frame.fields["bus"])
    except (KeyError, TypeError) as exc:
        raise ProtocolError(f"an announcement lacks {exc}") from None


def channel_from(fields: Sequence[Any]) -> Channel:
    """Return the channel whose `astuple` has crossed as JSON."""
    name, history, ttl, slow_client = fields
    return Channel(name, history, ttl, SlowClient(slow_client))


def _events_from(fields: Sequence[Any] | None) -> Events | None:
    if fields is None:
        return None
    kinds, timeout, state = fields
    return Events(tuple(kinds), timeout, state)


def _address(value: Any) -> Address:
    return tuple(value) if isinstance(value, list) else value
