"""How a client of Engine.IO changes over from polling to a WebSocket.

It sends "2probe" by the WebSocket and is answered "3probe". When it has no poll under way, it sends "5".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import ProtocolError
from ..protocols import websocket
from ..protocols.engineio import Packet, PacketType, parse_packet
from ..protocols.websocket import TextMessage
from .connection import READ, READ_SIZE

if TYPE_CHECKING:
    from ..plumbing.handover import Handover
    from .sessions import Session

# How long a client may take from its probe to its upgrade, and how often its poll is answered meanwhile.
UPGRADE_TIMEOUT = 10.0  # seconds
NUDGE_INTERVAL = 0.1  # seconds

PROBE = Packet(PacketType.PING, b"probe")


class Probe:
    """A WebSocket by which a client sees whether it can change over to one.

    Args:
        session: The client's.
        fd: Its socket.
        handover: The request that opens it.
    """

    __slots__ = ("_is_waiting", "_nudge", "_reader", "_rest", "_timer", "fd", "parser", "session")

    def __init__(self, session: Session, fd: int, handover: Handover) -> None:
        os.set_blocking(fd, False)
        loop = session.hub.loop
        self.session = session
        self.fd = fd
        self.parser = websocket.Parser(session.engine.max_payload)
        self._nudge: Any = None
        self._is_waiting = False  # for the first poll behind the probe
        self._timer: Any = loop.timer(UPGRADE_TIMEOUT)
        self._timer.start(self.close)
        self._reader: Any = loop.io(fd, READ)
        self._reader.start(self.read)
        self._rest = handover.rest
        self._send(handover.head + session.fields + b"Connection: Upgrade\r\n\r\n")

    def start(self) -> None:
        self._feed(self._rest)

    def is_first_poll(self) -> bool:
        """Tell whether a poll is the first since the probe; others wait, or a client would poll on and on."""
        is_first, self._is_waiting = self._is_waiting, False
        return is_first

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.release())

    def release(self) -> int:
        """Stop watching; return the descriptor, which the caller owns now."""
        if self.session.probe is self:
            self.session.probe = None
        for watcher in (self._reader, self._timer, self._nudge):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        fd, self.fd = self.fd, -1
        return fd

    def _send(self, data: bytes) -> None:
        try:
            if os.write(self.fd, data) < len(data):
                self.close()  # it has room for thousands of these
        except OSError:
            self.close()

    def read(self) -> None:
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._feed(data)
        else:
            self.close()

    def _feed(self, data: bytes) -> None:
        if self.fd < 0:
            return
        self.parser.feed(data)
        try:
            for event in self.parser.events():
                if not isinstance(event, TextMessage):
                    raise ProtocolError("a probe is text")
                self._take(parse_packet(event.data, self.session.engine.revision, is_binary=False))
                if self.fd < 0:
                    return  # the session goes on with what is in the parser
        except ProtocolError:
            self.close()

    def _take(self, packet: Packet) -> None:
        session = self.session
        if packet == PROBE and self._nudge is None:
            self._send(session.engine.frame(Packet(PacketType.PONG, PROBE.data)))
            self._nudge = session.hub.loop.timer(0, NUDGE_INTERVAL)
            self._nudge.start(session.nudge)
            self._is_waiting = True
        elif packet.type is PacketType.UPGRADE and self._nudge is not None:
            session.upgrade(self)
        else:
            raise ProtocolError("a client changes over after a probe")
