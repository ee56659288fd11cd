"""Sessions of Engine.IO: what a hub's connection needs beyond its socket when its client may poll, or change over."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ..bus.channel import Channel
from ..errors import ProtocolError, TooLarge
from ..plumbing.sessions import Home
from ..protocols import websocket
from ..protocols.engineio import Packet, PacketType, Refusal, encode_payload, parse_packet, parse_payload
from .connection import left
from .exchange import OWN_FIELDS, Exchange, fields_of
from .mailbox import Mailbox
from .probe import Probe

if TYPE_CHECKING:
    from ..engines.engineio import EngineIO
    from ..plumbing.handover import Handover
    from .connection import Connection
    from .process import Hub

# A client that polls takes three descriptors: both ends of its mailbox, and the socket of its poll.
DESCRIPTORS = 3

# How long a poll may come behind the packet that closes its session.
DONE_TIMEOUT = 2.0  # seconds

TEXT_TYPE = "text/plain; charset=UTF-8"
BINARY_TYPE = "application/octet-stream"

# Of a body that nobody wants, so much is read that the connection may remain.
MAX_REFUSED_SIZE = 64 * 1024  # bytes

# Between two pings of ours, from a client that pings itself.
MAX_PINGS = 100

NOOP = Packet(PacketType.NOOP)


class Sessions:
    """All sessions of a hub.

    Args:
        hub: Whose they are.
        home: What their ids begin with.
    """

    def __init__(self, hub: Hub, home: Home) -> None:
        self.hub = hub
        self.home = home
        self.by_id: dict[str, Session] = {}
        # Those whose clients have just closed them: when, and which revision they speak.
        self.done: dict[str, tuple[float, int]] = {}

    def begin(self, engine: EngineIO, fd: int, handover: Handover) -> None:
        """Make a session of a client's first request."""
        id = self.home.make_session_id(is_direct=engine.is_direct)
        session = self.by_id[id] = Session(self, engine, id, handover)
        if session.mailbox is not None:
            session.poll = Exchange(self.hub, fd, handover, session.poll_left)
            fd = session.mailbox.slot
            self.hub.limits.count += DESCRIPTORS - 1
        self.hub.connect(fd, engine, handover, session)

    def note_done(self, session: Session) -> None:
        """A client has closed its session without a poll; one may be under way, by another worker."""
        now = time.monotonic()
        self.done = {id: done for id, done in self.done.items() if now - done[0] < DONE_TIMEOUT}
        self.done[session.id] = now, session.engine.revision

    def request(self, fd: int, handover: Handover) -> None:
        """Bring a request to the session that it names."""
        id = handover.offload.session or ""
        session = self.by_id.get(id)
        particulars = handover.offload.particulars
        if session is None:
            self._request_of_none(id, fd, handover)
            return
        session.look_for_upgrade()
        if particulars["transport"] == "websocket":
            session.probed(fd, handover)
        elif particulars["transport"] != "polling":
            refuse(self.hub, fd, handover, Refusal.TRANSPORT_UNKNOWN, session.fields)
        elif not session.is_polling:
            refuse(self.hub, fd, handover, Refusal.BAD_REQUEST, session.fields)
        elif particulars["method"] == "GET":
            session.polled(fd, handover)
        elif particulars["method"] == "POST":
            session.posted(fd, handover)
        else:
            refuse(self.hub, fd, handover, Refusal.BAD_REQUEST, session.fields)

    def _request_of_none(self, id: str, fd: int, handover: Handover) -> None:
        particulars = handover.offload.particulars
        is_poll = particulars["method"] == "GET" and particulars["transport"] == "polling"
        if is_poll and id in self.done:
            _, revision = self.done.pop(id)
            exchange = Exchange(self.hub, fd, handover, _nothing)
            exchange.answer("200 OK", b"", TEXT_TYPE, encode_payload([NOOP], revision))
        else:
            refuse(self.hub, fd, handover, Refusal.SESSION_UNKNOWN)


class Session:
    """One client, whatever its transport is at the time.

    Args:
        sessions: The hub's.
        engine: Speaks to it.
        id: Secret: who knows it may speak for the client.
        handover: Its first request.

    Attributes:
        connection: Its connection, as soon as the hub has one.
        fields: Header fields of its first response that go along with all, as those of CORS.
        reason: Why it ends, in Socket.IO's words.
        publish: The channels that the client's messages go to.
        parser: Of the WebSocket.
        pings: That the client has sent since `pings_since`, on the loop's clock.
        conversation: What its engine keeps besides.
    """

    __slots__ = (
        "_is_awaiting_pong",
        "_is_taking",
        "_timer",
        "connection",
        "conversation",
        "engine",
        "fields",
        "hub",
        "id",
        "is_begun",
        "is_client_done",
        "is_over",
        "mailbox",
        "may_be_binary",
        "parser",
        "pings",
        "pings_since",
        "poll",
        "post",
        "probe",
        "publish",
        "reason",
        "sessions",
        "waiting",
    )

    def __init__(self, sessions: Sessions, engine: EngineIO, id: str, handover: Handover) -> None:
        particulars = handover.offload.particulars
        self.sessions = sessions
        self.hub = sessions.hub
        self.engine = engine
        self.id = id
        self.connection: Connection | None = None
        self.conversation: Any = None
        self.fields = b""
        if engine.is_direct:  # else the application sees to each response
            self.fields = fields_of(handover.head, without=(*OWN_FIELDS, b"date", b"server", b"set-cookie"))
        self.may_be_binary = engine.revision == 3 and not particulars.get("b64", False)
        self.mailbox: Mailbox | None = None  # while the client polls
        self.poll: Exchange | None = None  # that waits for something to send
        self.post: Exchange | None = None
        self.waiting: deque[Packet] = deque()  # of the last POST, not yet taken
        self.probe: Probe | None = None
        if particulars["transport"] == "polling":
            self.mailbox = Mailbox(self.hub, self.deliver)
        self.parser = websocket.Parser(engine.max_payload)
        self.publish: tuple[Channel, ...] = ()
        self.pings = 0
        self.pings_since = 0.0
        self.reason = "transport close"
        self.is_begun = self.mailbox is not None  # a WebSocket's first packet goes before what it is answered
        self.is_client_done = False  # it has closed the session itself
        self.is_over = False
        self._is_taking = False
        self._is_awaiting_pong = False
        self._timer: Any = None

    @property
    def is_polling(self) -> bool:
        return self.mailbox is not None

    # It begins.

    def open(self, handover: Handover) -> None:
        """Send the first packet, behind the head of the response that opens a WebSocket."""
        connection = self.connection
        assert connection is not None
        frame = self.engine.frame(self.engine.open_packet(self))
        if self.is_polling:
            connection.send(frame)
            self.deliver()
        else:
            connection.send(handover.head + b"Connection: Upgrade\r\n\r\n")
            self.parser.feed(handover.rest)
            self.hub.loop.run_callback(self._begin, frame)
        self._beat_later()

    def _begin(self, frame: bytes) -> None:
        """Send the first packet by itself: many a script listens only when its WebSocket is open."""
        connection = self.connection
        if connection is not None and not connection.is_over:
            try:
                connection.send(frame)
            except OSError as exc:
                self.hub.close(connection, left(exc))
                return
            self.is_begun = True
            self.engine.resumed(connection)

    # The client polls.

    def polled(self, fd: int, handover: Handover) -> None:
        """A request for what there is to send, or will be."""
        poll = Exchange(self.hub, fd, handover, self.poll_left)
        if self.poll is not None:
            refuse_exchange(poll, Refusal.BAD_REQUEST, self.fields)
            self._fail("two polls at a time")
            return
        self.poll = poll
        self.deliver()
        if self.probe is not None and self.probe.is_first_poll():
            self._answer_poll([NOOP])

    def deliver(self) -> None:
        """Answer the poll that waits with what is in the mailbox, if there is anything."""
        if self.mailbox is None:
            return
        if self.poll is None:
            self.mailbox.stop_watching()
            return
        packets = [parse_packet(data, self.engine.revision, is_binary=b) for data, b in self.mailbox.take()]
        if packets:
            self.mailbox.stop_watching()
            self._answer_poll(packets)
        elif self.mailbox.is_at_end:
            self.mailbox.close()  # all is told; the hub's end sees it
        else:
            self.mailbox.watch()

    def _answer_poll(self, packets: list[Packet]) -> None:
        poll, self.poll = self.poll, None
        if poll is None:
            return
        is_binary = self.may_be_binary and any(packet.is_binary for packet in packets)
        body = encode_payload(packets, self.engine.revision, binary=is_binary)
        poll.answer("200 OK", self.fields_for(poll), BINARY_TYPE if is_binary else TEXT_TYPE, body)

    def fields_for(self, exchange: Exchange) -> bytes:
        """Return the fields that an answer has beside those of its own request's response."""
        return self.fields if exchange.handover.offload.session else b""

    def poll_left(self) -> None:
        """The client has cancelled its poll, which is how one that polls leaves."""
        self.poll = None
        self._fail("the client left")

    def posted(self, fd: int, handover: Handover) -> None:
        """A request with what the client sends."""
        post = Exchange(self.hub, fd, handover, self._post_left)
        if self.post is not None:
            refuse_exchange(post, Refusal.BAD_REQUEST, self.fields)
            self._fail("two bodies at a time")
            return
        self.post = post
        post.read_body(handover.offload.particulars["length"], self.engine.max_payload, self._body_came)

    def _post_left(self) -> None:
        self.post = None
        self._fail("the client left")

    def _body_came(self, error: ProtocolError | None) -> None:
        post = self.post
        assert post is not None
        try:
            if error is not None or post.body is None:
                raise error or ProtocolError("there is no body")
            is_binary = post.handover.offload.particulars["is_binary"]
            packets = parse_payload(bytes(post.body.body), self.engine.revision, is_binary=is_binary)
        except ProtocolError as exc:
            self._refuse_post(exc)
            return
        self.waiting.extend(packets)
        self._take_waiting()

    def post_resumed(self) -> None:
        """The client is read again."""
        if self.post is not None and not self._is_taking:
            self._take_waiting()

    def _take_waiting(self) -> None:
        """Act on what was posted; the answer waits as long as the client must."""
        connection, post = self.connection, self.post
        self._is_taking = True
        try:
            while self.waiting and connection is not None and not connection.is_over:
                if not connection.is_read:
                    return
                self.engine.take(connection, self, self.waiting.popleft())
        except ProtocolError as exc:
            self._refuse_post(exc)
            return
        finally:
            self._is_taking = False
        if connection is not None and not connection.is_over and _is_busy(connection):
            return  # it is answered when that has been handled, and a poll behind it finds the answers
        self.post = None
        if post is not None:
            post.answer("200 OK", self.fields, "text/html", b"ok")

    def _refuse_post(self, error: ProtocolError) -> None:
        post, self.post = self.post, None
        if post is not None:
            status = "413 Content Too Large" if isinstance(error, TooLarge) else None
            refuse_exchange(post, Refusal.BAD_REQUEST, self.fields, status)
        self._fail(str(error))

    def _fail(self, reason: str) -> None:
        """End the session: the client has broken its rules, or has gone."""
        if self.connection is not None:
            self.hub.close(self.connection, reason)

    # The client changes over to a WebSocket.

    def probed(self, fd: int, handover: Handover) -> None:
        """A WebSocket that the client may change to."""
        connection = self.connection
        if "websocket" not in self.engine.transports:
            refuse(self.hub, fd, handover, Refusal.BAD_REQUEST, self.fields)
            return
        probe = Probe(self, fd, handover)
        may_upgrade = self.is_polling and self.probe is None
        if may_upgrade and connection is not None and connection.is_open and not connection.is_over:
            self.probe = probe
            probe.start()
        else:
            probe.close()

    def look_for_upgrade(self) -> None:
        """See first what the client has sent first, by another connection than a request that has come."""
        if self.probe is not None:
            self.probe.read()

    def nudge(self) -> None:
        """The client changes over when it has no poll under way."""
        self.deliver()
        self._answer_poll([NOOP])

    def upgrade(self, probe: Probe) -> None:
        """Go on with the WebSocket."""
        connection, mailbox = self.connection, self.mailbox
        assert connection is not None and mailbox is not None
        self.nudge()
        self.probe = None
        self.mailbox = None
        self.parser = probe.parser
        os.close(connection.move_to(probe.release(), mailbox.drain()))
        mailbox.close()
        self.hub.limits.count -= DESCRIPTORS - 1
        self.hub.loop.run_callback(self.engine.resumed, connection)  # for what came behind the upgrade

    # The client lives.

    def heard(self) -> None:
        """The client has answered a ping, or sent one."""
        if self._is_awaiting_pong or self.engine.revision == 3:
            self._beat_later()

    def _beat_later(self) -> None:
        engine = self.engine
        self._is_awaiting_pong = engine.revision == 3
        if engine.revision == 3:
            self._set_timer(engine.ping_interval + engine.ping_timeout)
        else:
            self._set_timer(engine.ping_interval)

    def _set_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.hub.loop.timer(seconds)
        self._timer.start(self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _on_timer(self) -> None:
        connection = self.connection
        if connection is None:
            return
        if not connection.is_read or (self.post is not None and self.post.is_read):
            self._set_timer(self.engine.ping_timeout)  # it cannot be heard
        elif self._is_awaiting_pong:
            self.reason = "ping timeout"
            self.hub.close(connection, "the client did not answer")
        else:
            self._is_awaiting_pong = True
            self._set_timer(self.engine.ping_timeout)
            try:
                connection.send(self.engine.frame(Packet(PacketType.PING)))
            except OSError as exc:
                self.hub.close(connection, left(exc))

    def count_ping(self) -> None:
        """Note a ping of the client.

        Raises:
            ProtocolError: It sends too many.
        """
        now = self.hub.loop.now()
        if now - self.pings_since > self.engine.ping_interval:
            self.pings_since, self.pings = now, 0
        self.pings += 1
        if self.pings > MAX_PINGS:
            raise ProtocolError("too many pings")

    # It ends.

    def end(self) -> None:
        """The hub has its connection no longer: tell who waits."""
        if self.is_over:
            return
        self.is_over = True
        del self.sessions.by_id[self.id]
        self._stop_timer()
        was_open = self.connection is not None and self.connection.is_open
        self.connection = None
        if self.probe is not None:
            self.probe.close()
        if self.mailbox is not None:
            self.hub.limits.count -= DESCRIPTORS - 1
            self._answer_last(was_open)
            self.mailbox.close()
        if self.post is not None and not self._is_taking:
            refuse_exchange(self.post, Refusal.SESSION_UNKNOWN, self.fields)
            self.post = None

    def _answer_last(self, was_open: bool) -> None:
        if self.poll is not None and not was_open:
            poll, self.poll = self.poll, None
            poll.answer("503 Service Unavailable", b"Retry-After: 2\r\n", TEXT_TYPE, b"")
            return
        assert self.mailbox is not None
        packets = [parse_packet(data, self.engine.revision, is_binary=b) for data, b in self.mailbox.take()]
        if not any(packet.type is PacketType.CLOSE for packet in packets):
            packets.append(NOOP if self.is_client_done else Packet(PacketType.CLOSE))
        if self.poll is not None:
            self._answer_poll(packets)
        elif self.is_client_done:
            self.sessions.note_done(self)


def _is_busy(connection: Connection) -> bool:
    """Tell whether an application has not handled yet what its client sent."""
    return connection.dialogue is not None and connection.dialogue.is_busy


def refuse(hub: Hub, fd: int, handover: Handover, refusal: Refusal, fields: bytes = b"") -> None:
    """Answer a request that no session takes."""
    exchange = Exchange(hub, fd, handover, _nothing)

    def answer(error: ProtocolError | None = None) -> None:
        refuse_exchange(exchange, refusal, fields)

    length = handover.offload.particulars["length"]
    if length == 0:
        answer()
    else:
        exchange.read_body(length, MAX_REFUSED_SIZE, answer)


def refuse_exchange(exchange: Exchange, refusal: Refusal, fields: bytes, status: str | None = None) -> None:
    status = status or ("403 Forbidden" if refusal.status == 403 else "400 Bad Request")
    exchange.answer(status, fields, "application/json", refusal.body)


def _nothing() -> None:
    pass
