"""The hub: takes connections from workers, and holds them until they end."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import gevent
import gevent.event

from ..bus.address import BusAddress
from ..bus.control import Disconnect
from ..bus.presence import PresenceTimes
from ..engines.base import Engine, make_engine
from ..errors import OffloadRefused, ProtocolError, TooLarge
from ..plumbing.events import (
    Event,
    EventKind,
)
from ..plumbing.frames import Frame, Kind
from ..plumbing.handover import HandBack, Handover, announced_bus
from ..plumbing.lines import DRAIN, receive
from ..plumbing.offload import Offload
from ..plumbing.sessions import Home
from ..protocols.websocket_close import CloseCode
from ..refusal import refusal
from ..settings import Settings
from . import draining
from .audience import Audience
from .connection import READ, Connection, blocking_socket, left, shut_down
from .effects import Effects
from .events import Dialogue, EventCalls
from .exchange import Exchange
from .fanout import Fanout
from .feed import OVERHEAD, Feed
from .following import Following
from .limits import Limits, counted_address
from .replay import Replay
from .sessions import Session, Sessions
from .subscriptions import Subscriptions

logger = logging.getLogger(__name__)

# Handovers taken in one turn of the loop, so that a storm of them does not hold up messages.
HANDOVERS_PER_TURN = 32

# How long a client waits for its stream to open while the bus does not confirm its channels.
CONFIRM_TIMEOUT = 1.0  # seconds

# A channel stays subscribed for so long after its last listener has left: they often return.
LINGER = 30.0  # seconds

# How long a client may take to close its side of a connection that we end.
CLOSE_TIMEOUT = 2.0  # seconds


class Hub:
    """Owns the offloaded connections.

    Args:
        settings: The operator's.
        hand, back, events: Descriptors of the hub's ends of the pairs.
        lifeline: Descriptor of the pipe by which the arbiter says stop, or is gone.
        drain_timeout: Seconds that clients may take for their last bytes when the hub stops.
        index: Which of its gunicorn's hubs it is.
    """

    def __init__(
        self,
        settings: Settings,
        hand: int,
        back: int,
        events: int,
        lifeline: int,
        drain_timeout: float,
        index: int = 0,
    ) -> None:
        self.settings = settings
        self.drain_timeout = drain_timeout
        self.loop = gevent.get_hub().loop
        self.hand = blocking_socket(fileno=hand)
        self.hand.setblocking(False)
        self.back = blocking_socket(fileno=back)
        self.back.setblocking(False)
        self.calls = EventCalls(self.loop, blocking_socket(fileno=events))
        self.calls.line.setblocking(False)
        self.hand_watcher = self.loop.io(self.hand.fileno(), READ)
        self.lifeline = lifeline
        self.limits = Limits(settings)
        self.connections: dict[int, Connection] = {}
        self.opening: dict[Connection, float] = {}  # until when they wait for the bus
        # For the bus to confirm a feed.
        self.waiting: defaultdict[Feed, dict[Connection, None]] = defaultdict(dict)
        self.lagging: dict[Connection, None] = {}
        self.engines: dict[tuple[str, str], Engine] = {}
        self.audiences: defaultdict[tuple[Engine, Following], dict[tuple[Feed, ...], Audience]] = defaultdict(
            dict
        )
        self.deserted: set[Audience] = set()  # somebody has left them, perhaps the last
        self.followings: dict[BusAddress, Following] = {}
        self.announced: BusAddress | None = None  # the bus of the application as it is now
        self.is_stopping = False
        self.ending: dict[Connection, float] = {}  # until when we wait for their clients to close
        self.expiring: dict[Connection, float] = {}  # Unix time
        self.stopped = gevent.event.Event()
        self.slice_timer = self.loop.timer(0)
        self.slice_is_due = False
        self.subscriptions = Subscriptions(self)
        self.sessions = Sessions(self, Home.of(settings.machine, index))
        self.exchanges: set[Exchange] = set()
        self.effects = Effects(self)

    def run(self) -> None:
        """Serve until the arbiter says stop or is gone, then let the clients go."""
        self.hand_watcher.start(self._take_handovers)
        lifeline_watcher = self.loop.io(self.lifeline, READ)
        lifeline_watcher.start(self._on_lifeline)
        clock = gevent.spawn(self._keep_time)
        self.stopped.wait()
        lifeline_watcher.stop()
        draining.drain(self)
        self.hand_watcher.stop()
        clock.kill()
        self.calls.close()
        for exchange in list(self.exchanges):
            exchange.close()
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
                if handover.offload.session is not None:
                    self.sessions.request(fds[0], handover)
                else:
                    self.take(fds[0], self._engine(handover), handover)
            case Kind.HAND_BACK | Kind.EVENT:
                raise ProtocolError(f"{frame.kind.name} goes to a worker")

    def take(self, fd: int, engine: Engine, handover: Handover) -> None:
        """Let a client in, or refuse it."""
        os.set_blocking(fd, False)
        address = counted_address(handover)
        reason = self._reason_to_refuse(address, handover.offload)
        if reason:
            logger.warning("A connection from %s was refused: %s", address or "a proxy", reason)
            _refuse(fd, handover)
            return
        engine.admit(self, fd, handover)

    def connect(
        self, fd: int, engine: Engine, handover: Handover, session: Session | None = None
    ) -> Connection:
        """Make a connection of a client's socket."""
        address = counted_address(handover)
        following = self._following(handover.offload.bus)
        followed = [following.follow(channel) for channel in handover.offload.followed]
        feeds = tuple(dict.fromkeys(followed))  # a channel that is named twice is followed once
        connection = Connection(self, fd, self.audience_of(engine, feeds, following), address, handover)
        if session is not None:
            connection.conversation, session.connection = session, connection
        self.connections[fd] = connection
        connection.audience.enter()
        self.limits.count_in(address, connection.labels)
        if handover.offload.expires is not None:
            self.expiring[connection] = handover.offload.expires
        if handover.offload.events is not None:
            wanted, environ = handover.offload.events, handover.environ
            connection.dialogue = Dialogue(self.calls, connection, wanted, environ)
        if handover.offload.presence is not None:
            following.presences.enter(connection, handover.offload.presence)
        self.opening[connection] = time.monotonic() + CONFIRM_TIMEOUT
        unconfirmed = [feed for feed in feeds if not feed.is_confirmed]
        for feed in unconfirmed:
            self.waiting[feed][connection] = None
        if not unconfirmed:
            self._open(connection)
        return connection

    def _reason_to_refuse(self, address: str, offload: Offload) -> str | None:
        if self.is_stopping:
            return "the hub is stopping"
        if offload.events is not None and self.calls.is_full:
            return f"{self.calls.size} bytes of clients' messages wait for the application"
        return self.limits.reason_to_refuse(address, offload.labels)

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
            if connection.dialogue is not None:
                connection.dialogue.tell(Event(EventKind.OPENED))
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
                waiting = self.waiting.get(feed, {})
                waiting.pop(connection, None)
                if not waiting:
                    self.waiting.pop(feed, None)

    def _engine(self, handover: Handover) -> Engine:
        offload = handover.offload
        key = (offload.engine, json.dumps(offload.options, sort_keys=True))
        engine = self.engines.get(key)
        if engine is None:
            engine = self.engines[key] = make_engine(offload.engine, offload.options)
        return engine

    def audience_of(self, engine: Engine, feeds: tuple[Feed, ...], following: Following) -> Audience:
        audiences = self.audiences[engine, following]
        audience = audiences.get(feeds)
        if audience is None:
            audience = audiences[feeds] = Audience(engine, feeds, self.connections, following)
            for feed in feeds:
                feed.followers += 1
        return audience

    def _following(self, address: BusAddress) -> Following:
        following = self.followings.get(address)
        if following is None:
            # Twice the largest message: the newest one never pushes out what is being sent.
            settings = self.settings
            feed_size = max(settings.feed_size, 2 * (settings.message_size + OVERHEAD))
            fanout = Fanout(feed_size, self.connections)
            following = self.followings[address] = Following(
                address,
                fanout,
                self.delivered,
                self.confirm,
                self.disconnect,
                self.not_published,
                settings.message_size,
                PresenceTimes(settings.presence_lifetime, settings.presence_linger),
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
        for connection in list(self.waiting.pop(feed, ())):
            if all(feed.is_confirmed for feed in connection.audience.feeds):
                self._open(connection)
        self.subscriptions.confirm(feed)

    def _run_slice(self) -> None:
        fanouts = [following.fanout for following in self.followings.values()]
        for fanout in fanouts:
            for connection, exc in fanout.run_slice():
                if exc is None:
                    self.finish(connection)
                else:
                    self.close(connection, left(exc))
        if any(fanout.is_busy for fanout in fanouts):
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
        if connection.fd < 0:
            return  # its client has left meanwhile
        connection.audience.leave(connection)
        try:
            connection.audience.engine.finish(connection)
        except Exception:
            logger.exception("A connection could not be ended in its engine's way")
            self.close(connection, "it could not be finished")

    def end(self, connection: Connection, farewell: bytes, reason: str) -> None:
        """Send a client its last bytes, and give it time to take them and to close its side.

        A connection that is closed while the client is sending is reset, and what we said is lost.
        """
        if connection.ending is not None or connection.fd < 0:
            return
        if not connection.is_open:
            self.turn_away(connection, reason)
            return
        connection.audience.leave(connection)
        self._wait_no_longer(connection)
        try:
            connection.send(farewell)
        except OSError:
            self.close(connection, reason)
            return
        connection.ending = reason
        self.ending[connection] = time.monotonic() + CLOSE_TIMEOUT
        connection.read_on()
        if connection.lag is None:
            shut_down(connection.fd)

    def turn_away(self, connection: Connection, reason: str) -> None:
        """Refuse a connection whose response has not begun."""
        handover = connection.opening
        assert handover is not None
        _refuse(self._remove(connection), handover)
        self._log_end(connection, reason)

    def close(self, connection: Connection, reason: str) -> None:
        """End a connection and write its line into the log."""
        if connection.fd < 0:
            return
        os.close(self._remove(connection))
        self._log_end(connection, connection.ending or reason)

    def disconnect(self, following: Following, control: Disconnect) -> None:
        """End the connections that a site wants to be rid of."""
        labels = set(control.labels)
        for connection in list(self.connections.values()):
            audience = connection.audience
            if audience.following is not following or not labels.issubset(connection.labels):
                continue
            if control.channel is None or any(feed.channel == control.channel for feed in audience.feeds):
                audience.engine.disconnect(connection, control.code, "disconnected by the site")

    def not_published(self, connection: Connection, reason: str) -> None:
        """What a client sent may not have been published."""
        connection.audience.engine.disconnect(connection, CloseCode.TRY_AGAIN_LATER, reason)

    def hand_back(self, connection: Connection, handover: Handover, rest: bytes) -> None:
        """Give a connection back to a worker, to be kept alive as after any answer."""
        problem = self.give_back(self._remove(connection), handover, rest)
        self._log_end(connection, problem or "handed back")

    def give_back(self, fd: int, handover: Handover, rest: bytes) -> str | None:
        """Give a client's socket back to a worker, with what was read of it; return why that failed, if it did."""
        frame = HandBack(handover.client, handover.server, rest).frame()
        try:
            socket.send_fds(self.back, [frame.encode()], [fd])
        except (OSError, TooLarge) as exc:
            return f"could not be handed back: {exc}"
        finally:
            os.close(fd)
        return None

    def _remove(self, connection: Connection) -> int:
        audience = connection.audience
        audience.leave(connection)
        audience.exit()
        self.deserted.add(audience)
        del self.connections[connection.fd]
        self._wait_no_longer(connection)
        self.limits.count_out(connection.address, connection.labels)
        self.expiring.pop(connection, None)
        self.ending.pop(connection, None)
        audience.following.presences.leave(connection)
        dialogue = connection.dialogue
        last_events = [] if dialogue is None else audience.engine.closing_events(connection, dialogue.code)
        audience.engine.left(connection)
        self.subscriptions.forget(connection)
        self.effects.forget(connection)
        if dialogue is not None:
            dialogue.close(last_events)
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
        for connection, deadline in list(self.ending.items()):
            if now > deadline:
                self.close(connection, "")
        self._expire(time.time())
        self.calls.warn(now)
        for following in self.followings.values():
            following.fanout.forget(self.lagging)
        timed = [engine for engine in self.engines.values() if engine.heartbeat or engine.timeout is not None]
        for period in {_period(engine) for engine in timed}:
            self._attend(second, now, period)
        self._forget_idle(now)

    def _expire(self, unix_time: float) -> None:
        for connection, expires in list(self.expiring.items()):
            if unix_time >= expires:
                del self.expiring[connection]
                connection.audience.engine.disconnect(connection, CloseCode.GOING_AWAY, "its time is over")

    def _attend(self, second: int, now: float, period: int) -> None:
        """Do what is due for those who have kept up: each second those whose turn it is."""
        for fd in range(second % period, max(self.connections, default=0) + 1, period):
            connection = self.connections.get(fd)
            if connection is None or not connection.has_place:
                continue
            engine = connection.audience.engine
            if _period(engine) != period:
                continue
            if engine.timeout is not None:
                if now - connection.opened > engine.timeout:
                    self.finish(connection)
            elif engine.is_gone(connection):
                self.close(connection, "the client did not answer")
            elif engine.heartbeat is not None:
                try:
                    connection.send(engine.beat(self._frontier(connection.audience)))
                except OSError as exc:
                    self.close(connection, left(exc))

    def _frontier(self, audience: Audience) -> str | None:
        """Return the cursor of who has everything, if the channels have a history."""
        following = audience.following
        if not audience.is_settled or not following.epoch or not any(feed.keeps for feed in audience.feeds):
            return None
        # Never back behind what the last message said.
        return f"{following.epoch}-{max(following.frontier, *(feed.last_id for feed in audience.feeds))}"

    def _forget_idle(self, now: float) -> None:
        unused = [audience for audience in self.deserted if not audience.is_used and audience.runs is None]
        self.deserted = {audience for audience in self.deserted if audience.runs is not None}
        gone: defaultdict[Feed, set[Audience]] = defaultdict(set)
        for audience in unused:
            del self.audiences[audience.engine, audience.following][audience.feeds]
            for feed in audience.feeds:
                gone[feed].add(audience)
                feed.followers -= 1
                if not feed.followers:
                    audience.following.idle[feed] = now
        for feed, audiences in gone.items():
            feed.audiences = [audience for audience in feed.audiences if audience not in audiences]
        self.audiences = defaultdict(dict, {key: some for key, some in self.audiences.items() if some})
        used_followings = {following for _, following in self.audiences}
        for address, following in list(self.followings.items()):
            following.unfollow_idle(now - LINGER)
            if not following.feeds and following not in used_followings and address != self.announced:
                del self.followings[address]
                following.close()
        used = {engine for engine, _ in self.audiences}
        self.engines = {key: engine for key, engine in self.engines.items() if engine in used}


def _period(engine: Engine) -> int:
    """Return the seconds between two visits to one of its connections."""
    return 1 if engine.timeout is not None or engine.heartbeat is None else max(1, round(engine.heartbeat))


def _refuse(fd: int, handover: Handover) -> None:
    try:
        os.write(fd, refusal(handover.offload.engine, handover.offload.options).encode(handover.head))
    except OSError:
        pass
    os.close(fd)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
