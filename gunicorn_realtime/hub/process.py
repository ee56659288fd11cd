"""The hub: takes connections from workers, and holds them until they end."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import gevent
import gevent.event
from gevent import monkey

from ..bus.address import BusAddress
from ..engines.base import Engine, make_engine
from ..errors import OffloadRefused, ProtocolError, TooLarge
from ..plumbing.frames import Frame, Kind
from ..plumbing.handover import HandBack, Handover, announced_bus
from ..plumbing.lines import DRAIN, receive
from ..refusal import refusal
from ..settings import Settings
from .connection import READ, Connection, left
from .fanout import Audience, Fanout
from .feed import OVERHEAD, Feed
from .following import Following
from .replay import Replay

logger = logging.getLogger(__name__)

# The loop is patched for everything but this: these sockets are read and written in callbacks.
blocking_socket: Any = monkey.get_original("socket", "socket")

# Handovers taken in one turn of the loop, so that a storm of them does not hold up messages.
HANDOVERS_PER_TURN = 32

# How long a client waits for its stream to open while the bus does not confirm its channels.
CONFIRM_TIMEOUT = 1.0  # seconds

# A channel stays subscribed for so long after its last listener has left: they often return.
LINGER = 30.0  # seconds

# Descriptors that are not clients': the bus, logs, the local bus's clients, those in flight.
SPARE_DESCRIPTORS = 256

# What macOS grants when it says that there is no limit.
MACOS_OPEN_MAX = 10240


class Hub:
    """Owns the offloaded connections.

    Args:
        settings: The operator's.
        hand, back: Descriptors of the hub's ends of the pairs.
        lifeline: Descriptor of the pipe by which the arbiter says stop, or is gone.
        drain_timeout: Seconds that clients may take for their last bytes when the hub stops.
    """

    def __init__(self, settings: Settings, hand: int, back: int, lifeline: int, drain_timeout: float) -> None:
        self.settings = settings
        self.drain_timeout = drain_timeout
        self.loop = gevent.get_hub().loop
        self.hand = blocking_socket(fileno=hand)
        self.hand.setblocking(False)
        self.back = blocking_socket(fileno=back)
        self.back.setblocking(False)
        self.hand_watcher = self.loop.io(self.hand.fileno(), READ)
        self.lifeline = lifeline
        self.capacity = _capacity(settings)
        self.connections: dict[int, Connection] = {}
        self.per_address: Counter[str] = Counter()
        self.opening: dict[Connection, float] = {}  # until when they wait for the bus
        self.lagging: dict[Connection, None] = {}
        self.engines: dict[tuple[str, str], Engine] = {}
        self.audiences: dict[tuple[Engine, tuple[Feed, ...], Following], Audience] = {}
        self.paging: set[Connection] = set()  # those whose history is read from the bus
        self.followings: dict[BusAddress, Following] = {}
        self.announced: BusAddress | None = None  # the bus of the application as it is now
        self.is_stopping = False
        self.told: set[Connection] = set()  # those who have been sent their goodbye
        self.stopped = gevent.event.Event()
        self.slice_timer = self.loop.timer(0)
        self.slice_is_due = False

    def run(self) -> None:
        """Serve until the arbiter says stop or is gone, then let the clients go."""
        self.hand_watcher.start(self._take_handovers)
        lifeline_watcher = self.loop.io(self.lifeline, READ)
        lifeline_watcher.start(self._on_lifeline)
        clock = gevent.spawn(self._keep_time)
        self.stopped.wait()
        lifeline_watcher.stop()
        self._drain()
        self.hand_watcher.stop()
        clock.kill()
        for following in self.followings.values():
            following.close()

    def _on_lifeline(self) -> None:
        if os.read(self.lifeline, len(DRAIN)) != DRAIN:
            self.drain_timeout = 0.0  # the arbiter is gone, or waits for nobody
        self.stop()

    def stop(self) -> None:
        self.is_stopping = True
        self.stopped.set()

    # Connections come.

    def _take_handovers(self) -> None:
        for _ in range(HANDOVERS_PER_TURN):
            try:
                data, fds = receive(self.hand)
            except BlockingIOError:
                return
            except OffloadRefused as exc:
                logger.error("%s", exc)
                continue
            if not data:  # no worker lives, and neither does the arbiter
                self.hand_watcher.stop()
                return
            try:
                self._take(Frame.decode(data), fds)
            except ProtocolError as exc:
                logger.error("A worker sent what this hub cannot read: %s", exc)
                _close(fds)
            except Exception:
                logger.exception("A handover failed")
                _close(fd for fd in fds if fd not in self.connections)

    def _take(self, frame: Frame, fds: list[int]) -> None:
        match frame.kind:
            case Kind.ANNOUNCE:
                self.announced = announced_bus(frame)
                self._following(self.announced)
            case Kind.HANDOVER:
                handover = Handover.from_frame(frame)
                engine = self._engine(handover)
                self.take(fds[0], engine, handover)
            case Kind.HAND_BACK:
                raise ProtocolError("a hand-back goes to a worker")

    def take(self, fd: int, engine: Engine, handover: Handover) -> None:
        """Make a connection of a client's socket, or refuse it."""
        os.set_blocking(fd, False)
        address = _address(handover)
        reason = self._reason_to_refuse(address)
        if reason:
            logger.warning("A connection from %s was refused: %s", address or "a proxy", reason)
            _refuse(fd, handover)
            return
        following = self._following(handover.offload.bus)
        followed = [following.follow(channel) for channel in handover.offload.followed]
        feeds = tuple(dict.fromkeys(followed))  # a channel that is named twice is followed once
        connection = Connection(self, fd, self._audience(engine, feeds, following), address, handover)
        self.connections[fd] = connection
        if address:
            self.per_address[address] += 1
        self.opening[connection] = time.monotonic() + CONFIRM_TIMEOUT
        unconfirmed = [feed for feed in feeds if not feed.is_confirmed]
        for feed in unconfirmed:
            feed.waiting[connection] = None
        if not unconfirmed:
            self._open(connection)

    def _reason_to_refuse(self, address: str) -> str | None:
        if self.is_stopping:
            return "the hub is stopping"
        if len(self.connections) >= self.capacity:
            return f"the hub holds {self.capacity} connections, as many as it may"
        limit = self.settings.connections_per_address
        if address and limit and self.per_address[address] >= limit:
            return f"the address has {limit} connections, as many as it may"
        return None

    def _open(self, connection: Connection, knows_clock: bool = False) -> None:
        """Its channels are followed: from here on it gets what is published, after what it has missed."""
        handover = connection.opening
        if handover is None:
            return
        replay = Replay(connection, handover.offload.cursor)
        if replay.may_be_ahead and not knows_clock:
            open_then = partial(self._open, connection, knows_clock=True)
            connection.audience.following.histories.call_at_clock(open_then)
            return
        cursor = None if connection.is_open else replay.first_cursor
        self._send_head(connection, cursor)
        if connection.fd < 0:
            return
        self._wait_no_longer(connection)
        try:
            replay.begin(is_told=cursor is not None)
        except OSError as exc:
            self.close(connection, left(exc))

    def _send_head(self, connection: Connection, cursor: str | None = None) -> None:
        handover = connection.opening
        if handover is None or connection.is_open:
            return
        connection.is_open = True
        self.opening[connection] = math.inf
        try:
            connection.audience.engine.open(connection, handover, cursor)
        except OSError as exc:
            self.close(connection, left(exc))
        except Exception:
            logger.exception("A connection could not be opened")
            self.close(connection, "it could not be opened")

    def _wait_no_longer(self, connection: Connection) -> None:
        if connection.opening is not None:
            connection.opening = None
            self.opening.pop(connection, None)
            for feed in connection.audience.feeds:
                feed.waiting.pop(connection, None)

    def _engine(self, handover: Handover) -> Engine:
        offload = handover.offload
        key = (offload.engine, json.dumps(offload.options, sort_keys=True))
        engine = self.engines.get(key)
        if engine is None:
            engine = self.engines[key] = make_engine(offload.engine, offload.options)
        return engine

    def _audience(self, engine: Engine, feeds: tuple[Feed, ...], following: Following) -> Audience:
        key = (engine, feeds, following)
        audience = self.audiences.get(key)
        if audience is None:
            audience = self.audiences[key] = Audience(engine, feeds, self.connections, following)
            for feed in feeds:
                feed.audiences.append(audience)
        return audience

    def _following(self, address: BusAddress) -> Following:
        following = self.followings.get(address)
        if following is None:
            # Twice the largest message: the newest one never pushes out what is being sent.
            settings = self.settings
            fanout = Fanout(max(settings.feed_size, 2 * (settings.message_size + OVERHEAD)))
            following = self.followings[address] = Following(
                address, fanout, self.delivered, self.confirm, settings.message_size
            )
        return following

    # Messages come.

    def delivered(self) -> None:
        """A message has been added to a fan-out."""
        if not self.slice_is_due:
            self.slice_is_due = True
            self.loop.run_callback(self._run_slice)

    def confirm(self, feed: Feed) -> None:
        """From here on nothing is missed of this feed."""
        feed.is_confirmed = True
        for connection in list(feed.waiting):
            if all(feed.is_confirmed for feed in connection.audience.feeds):
                self._open(connection)

    def _run_slice(self) -> None:
        fanouts = [following.fanout for following in self.followings.values()]
        for fanout in fanouts:
            for connection, exc in fanout.run_slice():
                if exc is None:
                    self.finish(connection)
                else:
                    self.close(connection, left(exc))
        if any(fanout.queue for fanout in fanouts):
            # By a timer and not by a callback: the loop polls its descriptors in between.
            self.slice_timer.start(self._run_slice)
            return
        self.slice_is_due = False
        for following in self.followings.values():
            following.fanout.forget(self.lagging)
            following.resume()

    # Connections go.

    def finish(self, connection: Connection) -> None:
        """End a connection that came for one message, in its engine's way."""
        connection.audience.leave(connection)
        try:
            connection.audience.engine.finish(connection)
        except Exception:
            logger.exception("A connection could not be ended in its engine's way")
            self.close(connection, "it could not be finished")

    def close(self, connection: Connection, reason: str) -> None:
        """End a connection and write its line into the log."""
        if connection.fd < 0:
            return
        os.close(self._remove(connection))
        self._log_end(connection, reason)

    def hand_back(self, connection: Connection, handover: Handover, rest: bytes) -> None:
        """Give a connection back to a worker, to be kept alive as after any answer."""
        fd = self._remove(connection)
        frame = HandBack(handover.client, handover.server, rest).frame()
        reason = "handed back"
        try:
            socket.send_fds(self.back, [frame.encode()], [fd])
        except (OSError, TooLarge) as exc:
            reason = f"could not be handed back: {exc}"
        os.close(fd)
        self._log_end(connection, reason)

    def _remove(self, connection: Connection) -> int:
        audience = connection.audience
        audience.leave(connection)
        del self.connections[connection.fd]
        self._wait_no_longer(connection)
        if connection.address:
            self.per_address[connection.address] -= 1
            if not self.per_address[connection.address]:
                del self.per_address[connection.address]
        audience.engine.left(connection)
        return connection.release()

    def _log_end(self, connection: Connection, reason: str) -> None:
        audience = connection.audience
        logger.info(
            "%s %s from %s: %.1f s, %d messages, %d bytes, %s",
            audience.engine.name,
            ",".join(feed.channel for feed in audience.feeds),
            connection.address or "-",
            time.monotonic() - connection.opened,
            connection.messages,
            connection.bytes,
            reason,
        )

    # Time passes.

    def _keep_time(self) -> None:
        second = 0
        while True:
            gevent.sleep(1)
            second += 1
            try:
                self._tick(second, time.monotonic())
            except Exception:
                logger.exception("A tick of the hub failed")

    def _tick(self, second: int, now: float) -> None:
        for connection, deadline in list(self.opening.items()):
            if now > deadline:
                self._send_head(connection)  # the rest comes once the bus is back
        for connection in list(self.lagging):
            lag = connection.lag
            if connection.has_fallen_off:
                self.close(connection, "slow client")
            elif lag and now - lag.since > self.settings.write_timeout:
                self.close(connection, f"took nothing for {self.settings.write_timeout:.0f} s")
        for following in self.followings.values():
            following.fanout.forget(self.lagging)
        for audience in list(self.audiences.values()):
            self._attend(audience, second, now)
        self._forget_idle(now)

    def _attend(self, audience: Audience, second: int, now: float) -> None:
        """Do what is due for those who have kept up."""
        engine = audience.engine
        if engine.timeout is not None:
            for connection in audience.members():
                if now - connection.opened > engine.timeout:
                    self.finish(connection)
        elif engine.heartbeat is not None:
            # Each second those whose turn it is, so that not all get theirs at once.
            period = max(1, round(engine.heartbeat))
            for connection in audience.members((second + id(audience) // 64) % period, period):
                try:
                    connection.send(engine.beat(self._frontier(audience)))
                except OSError as exc:
                    self.close(connection, left(exc))

    def _frontier(self, audience: Audience) -> str | None:
        """Return the cursor of who has everything, if the channels have a history."""
        following = audience.following
        if audience.runs is not None or not following.epoch or not any(feed.keeps for feed in audience.feeds):
            return None
        # Never back behind what the last message said.
        return f"{following.epoch}-{max(following.frontier, *(feed.last_id for feed in audience.feeds))}"

    def _forget_idle(self, now: float) -> None:
        # Those who open or lag have no place in their audience, but come back to it.
        awaited = {connection.audience for connection in (*self.opening, *self.lagging, *self.paging)}
        for key, audience in list(self.audiences.items()):
            if audience.is_empty and audience.runs is None and audience not in awaited:
                del self.audiences[key]
                for feed in audience.feeds:
                    feed.audiences.remove(audience)
                    if not feed.audiences:
                        feed.idle_since = now
        for address, following in list(self.followings.items()):
            following.unfollow_idle(now - LINGER)
            if not following.feeds and address != self.announced:
                del self.followings[address]
                following.close()
        used = {audience.engine for audience in self.audiences.values()}
        self.engines = {key: engine for key, engine in self.engines.items() if engine in used}

    # The end.

    def _drain(self) -> None:
        """Say goodbye to everybody; those who lag may take a little longer."""
        logger.info("Stopping with %d connections", len(self.connections))
        for count, connection in enumerate(list(self.connections.values())):
            if connection.lag is None:
                self._say_goodbye(connection)
            if count % 100 == 0:
                gevent.sleep(0)
        deadline = time.monotonic() + self.drain_timeout
        while self.lagging and time.monotonic() < deadline:
            gevent.sleep(0.02)
            for connection in [c for c in self.connections.values() if c.lag is None]:
                self._say_goodbye(connection)
        for connection in list(self.connections.values()):
            self.close(connection, "the hub stopped")

    def _say_goodbye(self, connection: Connection) -> None:
        if connection.fd < 0:
            return  # it has left while others were told
        if connection.opening is not None and not connection.is_open:
            opening = connection.opening
            _refuse(self._remove(connection), opening)
            return
        if connection not in self.told:
            self.told.add(connection)
            try:
                connection.send(connection.audience.engine.goodbye())
            except OSError:
                pass
        if connection.lag is None:
            self.close(connection, "the hub stopped")


def _capacity(settings: Settings) -> int:
    """Raise the open-file limit as far as we may; return how many clients fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MACOS_OPEN_MAX if hard == resource.RLIM_INFINITY else hard
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    possible = max(1, soft - SPARE_DESCRIPTORS)
    if not settings.connections:
        return possible
    if settings.connections > possible:
        logger.warning("The open-file limit %d leaves room for %d connections", soft, possible)
    return min(settings.connections, possible)


def _address(handover: Handover) -> str:
    """Return the address that the client's limit is counted by; empty if it is a proxy."""
    return str(handover.client[0]) if handover.counted and isinstance(handover.client, tuple) else ""


def _refuse(fd: int, handover: Handover) -> None:
    try:
        os.write(fd, refusal(handover.offload.engine, handover.offload.options).encode(handover.head))
    except OSError:
        pass
    os.close(fd)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
