"""Publish lines to a channel with history: ``python -m bench.publisher URL CHANNEL HISTORY TTL``.

The load client speaks no more than PUBLISH, so it sends its messages here as lines on a TCP
connection. They are published one by one in their order, each until it has succeeded. One line on
standard output says the port, another at the end of the connection what happened, in JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from dataclasses import asdict, dataclass

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing, Publisher
from gunicorn_realtime.errors import BusUnavailable

PAUSE = 0.05  # seconds, before a failed publish is tried again


@dataclass(slots=True)
class Counts:
    """What happened.

    Args:
        published: Lines.
        failures: Calls that raised; the line may have been stored.
        stored: Of the lines whose call raised, how many were found in the history.
        unclear: How many it could not be said of, and so may be there twice.
    """

    published: int = 0
    failures: int = 0
    stored: int = 0
    unclear: int = 0


class LinePublisher:
    def __init__(self, publisher: Publisher, channel: Channel) -> None:
        self.counts = Counts()
        self._publisher = publisher
        self._channel = channel
        self._cursor = publisher.read_clock().cursor

    def publish(self, line: bytes) -> None:
        """Publish a line, however long that takes."""
        has_failed = False
        while not (has_failed and self._is_stored(line)):
            try:
                [cursor] = self._publisher.send([Outgoing(self._channel, line)])
            except BusUnavailable as exc:
                print(exc, file=sys.stderr)
                self.counts.failures += 1
                has_failed = True
                time.sleep(PAUSE)
            else:
                assert cursor is not None
                self._cursor = cursor
                break
        self.counts.published += 1

    def _is_stored(self, line: bytes) -> bool:
        epoch, _, after = self._cursor.partition("-")
        while True:
            try:
                page = self._publisher.read_after([self._channel], int(after))
                break
            except BusUnavailable:
                time.sleep(PAUSE)
        if page.clock.epoch != epoch:
            self.counts.unclear += 1
            self._cursor = page.clock.cursor
            return False
        found = any(message.data == line for message in page.logs[self._channel.name].entries)
        self.counts.stored += found
        return found


def main() -> None:
    url, name, history, ttl = sys.argv[1:]
    lines = LinePublisher(Publisher(BusAddress(url)), Channel(name, int(history), float(ttl)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            for line in stream:
                lines.publish(line.rstrip(b"\n"))
    print(json.dumps(asdict(lines.counts)), flush=True)


if __name__ == "__main__":
    main()
