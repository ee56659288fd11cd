"""How a hub that stops lets its clients go."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent

from ..protocols.websocket_close import CloseCode

if TYPE_CHECKING:
    from .connection import Connection
    from .process import Hub

logger = logging.getLogger(__name__)


def drain(hub: Hub) -> None:
    """Say goodbye to everybody; those who lag may take a little longer."""
    told: set[Connection] = set()
    logger.info("Stopping with %d connections", len(hub.connections))
    for count, connection in enumerate(list(hub.connections.values())):
        if connection.lag is None:
            say_goodbye(hub, connection, told)
        if count % 100 == 0:
            gevent.sleep(0)
    deadline = time.monotonic() + hub.drain_timeout
    # Half of it is for applications, which are told how everybody has ended.
    while hub.lagging and time.monotonic() < deadline - hub.drain_timeout / 2:
        gevent.sleep(0.02)
        for connection in [c for c in hub.connections.values() if c.lag is None]:
            say_goodbye(hub, connection, told)
    for connection in list(hub.connections.values()):
        hub.close(connection, "the hub stopped")
    while hub.calls.is_busy and time.monotonic() < deadline:
        gevent.sleep(0.02)


def say_goodbye(hub: Hub, connection: Connection, told: set[Connection]) -> None:
    """End a connection as soon as it has its last bytes; `told` are those who have been sent theirs."""
    if connection.fd < 0:
        return  # it has left while others were told
    if not connection.is_open:
        hub.turn_away(connection, "the hub stopped")
        return
    if connection not in told:
        told.add(connection)
        if connection.dialogue is not None:
            connection.dialogue.code = CloseCode.GOING_AWAY
        try:
            connection.send(connection.audience.engine.goodbye())
        except OSError:
            pass
    if connection.lag is None:
        hub.close(connection, "the hub stopped")
