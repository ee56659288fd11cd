"""What a hub does with WebSockets; their frames as wsproto reads them on the client's side."""

from __future__ import annotations

import re
import time
from dataclasses import astuple, replace

import pytest
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing
from gunicorn_realtime.bus.control import Disconnect
from gunicorn_realtime.engines.websocket import MAX_EARLY_SIZE, MAX_PINGS
from gunicorn_realtime.hub import connection as connection_module
from gunicorn_realtime.hub.draining import drain
from gunicorn_realtime.hub.process import CLOSE_TIMEOUT, CONFIRM_TIMEOUT
from gunicorn_realtime.plumbing.handover import Handover
from gunicorn_realtime.protocols.websocket import Opcode
from tests.engines.test_websocket import read_as_client
from tests.hub.conftest import Client, HubUnderTest, handover
from tests.protocols.test_websocket import frame

HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
HEAD_END = b"Connection: Upgrade\r\n\r\n"
REFUSAL = rb"HTTP/1.1 503 Service Unavailable\r\n.*Retry-After: \d\r\n.*"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = Opcode

Labels = tuple[str, ...]


def websocket(
    *channels: str,
    publish: Labels = (),
    prefix: str = "",
    suffix: str = "",
    labels: Labels = (),
    expires: float | None = None,
    engine: str = "websocket",
    head: bytes = HEAD,
    rest: bytes = b"",
    **options: object,
) -> Handover:
    opening = handover(*channels, head=head, rest=rest, engine=engine, **options)
    particulars = {
        "publish": [list(astuple(Channel(name))) for name in publish],
        "prefix": prefix,
        "suffix": suffix,
    }
    offload = replace(opening.offload, particulars=particulars, labels=labels, expires=expires)
    return replace(opening, offload=offload)


class Peer:
    """A client, and the connection that a hub has with it."""

    def __init__(self, hub: HubUnderTest, client: Client, opening: Handover) -> None:
        self.hub = hub
        self.client = client
        self.connection = hub.give(client, opening)

    def send(self, data: bytes) -> None:
        """Let the hub have what the client sends."""
        self.client.sock.sendall(data)
        received = self.connection.received + len(data)
        self.hub.turn_until(lambda: self.connection.received >= received or self.connection.fd < 0)

    def events(self) -> list[Event]:
        """Return all that the client has had since the response's head."""
        head, separator, frames = self.client.read().partition(HEAD_END)
        assert (head, separator) == (HEAD, HEAD_END)
        return read_as_client(frames)

    def wait_for_end(self) -> list[Event]:
        """Return all that the client has ever had."""
        self.hub.turn_until(lambda: self.client.read() and self.client.is_at_end)
        return self.events()

    @property
    def reason(self) -> str | None:
        """Why the connection has ended."""
        return self.hub.reasons.get(self.connection)


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, code.to_bytes(2) + reason.encode())


@pytest.fixture
def join(hub, make_client):
    """Open a WebSocket."""

    def join(*channels: str, **options) -> Peer:
        return Peer(hub, make_client(), websocket(*channels, **options))

    return join


# Messages.


def test_client_gets_what_is_published_text_as_text_and_bytes_as_bytes(hub, join):
    peer = join("news")

    hub.bus.publish("news", b"hello")
    hub.bus.publish("news", b"\x00\xff", is_binary=True)
    hub.settle()

    assert peer.events() == [TextMessage("hello"), BytesMessage(b"\x00\xff")]


def test_what_a_client_sends_is_published_between_prefix_and_suffix(hub, join):
    peer = join(publish=("a", "b"), prefix="<ü>", suffix="</ü>")

    peer.send(frame(TEXT, b"hello") + frame(BINARY, b"\xff"))

    assert hub.bus.outbox.messages == [
        Outgoing(Channel("a"), "<ü>hello</ü>".encode()),
        Outgoing(Channel("b"), "<ü>hello</ü>".encode()),
        Outgoing(Channel("a"), "<ü>".encode() + b"\xff" + "</ü>".encode(), is_binary=True),
        Outgoing(Channel("b"), "<ü>".encode() + b"\xff" + "</ü>".encode(), is_binary=True),
    ]
    assert peer.events() == []


def test_message_that_arrives_in_pieces_is_published_once(hub, join):
    peer = join(publish=("a",))
    data = frame(TEXT, b"one, ", more=True) + frame(PING, b"?") + frame(CONTINUATION, b"two")

    for i in range(len(data)):
        peer.send(data[i : i + 1])

    assert [message.data for message in hub.bus.outbox.messages] == [b"one, two"]
    assert peer.events() == [Pong(b"?")]


def test_client_that_is_to_send_nothing_is_told_so(hub, join):
    peer = join("news")

    peer.send(frame(TEXT, b"hello"))

    assert peer.wait_for_end() == [CloseConnection(1003, "nothing is to be sent here")]


def test_message_that_no_hub_would_take_is_answered_and_not_published(make_hub, client):
    hub = make_hub(message_size=1000)
    peer = Peer(hub, client, websocket(publish=("a",), suffix="."))

    peer.send(frame(TEXT, b"x" * 999) + frame(TEXT, b"x" * 1000))

    assert [len(message.data) for message in hub.bus.outbox.messages] == [1000]
    assert peer.wait_for_end() == [CloseConnection(1009, "a message has 1001 bytes, more than 1000")]


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"\x81\x05hello", 1002, "a frame of the client is not masked"),
        (frame(TEXT, b"\xff"), 1007, "a text is not UTF-8"),
        (frame(TEXT, b"x" * 50, more=True) * 2, 1002, "a message begins before the last frame of another"),
        (frame(TEXT, b"x" * 101), 1009, "a message has 101 bytes, more than 100"),
        (
            b"\x81\xff" + (1 << 40).to_bytes(8) + b"mask",
            1009,
            f"a message has {1 << 40} bytes, more than 100",
        ),
    ],
)
def test_client_that_breaks_the_protocol_or_a_limit_is_told_why(hub, join, data, code, reason):
    peer = join(publish=("a",), max_size=100)

    peer.send(data)

    assert peer.wait_for_end() == [CloseConnection(code, reason)]
    assert peer.connection.ending == reason
    assert not hub.bus.outbox.messages


def test_answer_reaches_a_client_that_goes_on_sending(join):
    """A socket that is closed over what it has not read is reset, and what was said is lost."""
    peer = join(publish=("a",), max_size=100)

    peer.client.sock.sendall(frame(TEXT, b"x" * 101) + b"x" * 50_000)

    assert peer.wait_for_end() == [CloseConnection(1009, "a message has 101 bytes, more than 100")]


# The end of a conversation.


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (close_frame(1000, "bye"), CloseConnection(1000, "")),
        (close_frame(4321), CloseConnection(4321, "")),
        (frame(CLOSE), CloseConnection(1005, "")),
    ],
)
def test_close_is_answered_with_its_code_and_then_nothing_comes(hub, join, sent, answer):
    peer = join("news", publish=("a",))

    peer.send(sent + frame(TEXT, b"late"))
    hub.bus.publish("news", b"late")
    hub.settle()

    assert peer.wait_for_end() == [answer]
    assert not hub.bus.outbox.messages
    peer.client.close()
    hub.turn_until(lambda: peer.reason)
    assert peer.reason == "the client closed"
    assert not hub.connections
    assert not hub.ending


def test_client_that_does_not_close_its_side_is_left_after_a_while(hub, join):
    peer = join("news")
    peer.send(close_frame(1000))

    hub._tick(1, time.monotonic() + CLOSE_TIMEOUT - 1)
    assert not peer.reason
    hub._tick(2, time.monotonic() + CLOSE_TIMEOUT)

    assert peer.reason == "the client closed"


def test_client_that_lags_gets_what_is_on_its_way_and_the_close_behind_it(hub, join):
    peer = join("news")
    text = "x" * 100_000
    hub.bus.publish("news", text.encode())
    hub.settle()
    assert peer.connection in hub.lagging

    hub.end(peer.connection, peer.connection.audience.engine.goodbye(), "enough")
    hub.bus.publish("news", b"late")

    assert peer.wait_for_end() == [TextMessage(text), CloseConnection(1001, "")]


def test_nothing_is_sent_behind_the_last_bytes(hub, join):
    peer = join("news")
    lagging = join("news")
    hub.bus.publish("news", b"x" * 100_000)
    hub.settle()
    hub.turn_until(lambda: len(peer.client.read()) > 100_000)

    for connection in (peer.connection, lagging.connection):
        hub.end(connection, b"last", "enough")
        connection.send(b"a page of its history")

    for each in (peer, lagging):
        hub.turn_until(lambda: each.client.read() and each.client.is_at_end)  # noqa: B023
        assert each.client.received.endswith(b"last")


def test_client_that_leaves_without_a_close_is_forgotten(hub, join):
    peer = join("news", publish=("a",))
    peer.send(frame(TEXT, b"x" * 1000)[:500])

    peer.client.close()
    hub.turn_until(lambda: peer.reason)

    assert peer.reason.startswith("the client left")
    assert not hub.bus.outbox.messages
    assert not hub.connections


def test_message_that_could_not_be_published_ends_its_connection_for_now(hub, join):
    peer = join(publish=("a",))

    hub.not_published(peer.connection, "the bus is unavailable")

    assert peer.wait_for_end() == [CloseConnection(1013, "the bus is unavailable")]
    hub.close(peer.connection, "")
    hub.not_published(peer.connection, "it is gone by now")


def test_stopping_hub_goes_away(hub, join):
    peer = join("news")
    hub.stop()

    drain(hub)

    assert peer.events() == [CloseConnection(1001, "")]
    assert peer.client.is_at_end


# Whether the client lives.


@pytest.mark.parametrize(
    "sign", [frame(PONG), frame(PING), frame(TEXT, b"hello"), frame(TEXT, b"he", more=True)]
)
def test_client_that_shows_no_sign_of_life_between_two_pings_is_cut(hub, join, sign):
    quick, silent = (join(publish=("a",), heartbeat=1) for _ in range(2))
    hub._tick(1, time.monotonic())
    assert quick.events() == silent.events() == [Ping()]
    quick.send(sign)

    hub._tick(2, time.monotonic())

    assert silent.reason == "the client did not answer"
    assert not quick.reason
    assert quick.events().count(Ping()) == 2


def test_client_whose_messages_have_to_wait_is_not_cut_for_silence(hub, join):
    peer = join(publish=("a",), heartbeat=1)
    peer.connection.stop_reading()
    for second in range(1, 4):
        hub._tick(second, time.monotonic())
    assert not peer.reason

    peer.connection.read_on()
    peer.send(frame(PONG))
    hub._tick(4, time.monotonic())

    assert not peer.reason


def test_client_that_only_pings_is_cut(hub, join):
    peer = join("news", heartbeat=1)

    def ping(times: int) -> None:
        for _ in range(times):
            peer.send(frame(PING))
            peer.client.read()  # or it would lag

    ping(MAX_PINGS)
    hub._tick(1, time.monotonic())
    ping(MAX_PINGS)
    assert peer.connection.ending is None
    ping(1)

    expected = [Pong()] * MAX_PINGS + [Ping()] + [Pong()] * MAX_PINGS
    assert peer.wait_for_end() == [*expected, CloseConnection(1008, "too many pings")]


def test_client_may_ping_while_it_takes_a_large_message(hub, join, monkeypatch):
    monkeypatch.setattr(connection_module, "MAX_UNREAD_SIZE", 1000)
    peer = join("news")
    hub.bus.publish("news", b"x" * 100_000)
    hub.settle()

    peer.send(frame(PING, b"?"))

    hub.turn_until(lambda: peer.client.read() and not hub.lagging)
    assert peer.events() == [TextMessage("x" * 100_000), Pong(b"?")]


def test_client_that_does_not_read_what_it_asks_for_is_cut(hub, join, monkeypatch):
    monkeypatch.setattr(connection_module, "MAX_UNREAD_SIZE", 1000)
    peer = join("news")
    hub.bus.publish("news", b"x" * 100_000)
    hub.settle()

    peer.send(frame(PING, b"x" * 125) * 9)

    assert peer.reason == "slow client"


# Before the connection is open.


def test_what_comes_too_early_waits(hub, join):
    hub.bus.is_in_reach = False
    peer = join("news", publish=("a",), rest=frame(TEXT, b"with the request")[:10])
    peer.send(frame(TEXT, b"with the request")[10:] + frame(PING, b"?"))
    assert peer.client.read() == b""
    assert not hub.bus.outbox.messages

    hub.bus.confirm()
    hub.bus.publish("news", b"hello")
    hub.settle()

    assert [message.data for message in hub.bus.outbox.messages] == [b"with the request"]
    assert peer.events() == [Pong(b"?"), TextMessage("hello")]


def test_close_that_comes_too_early_is_answered(hub, join):
    peer = join("news", rest=close_frame(1000))

    assert peer.wait_for_end() == [CloseConnection(1000, "")]


def test_who_sends_too_much_too_early_is_cut(hub, join):
    hub.bus.is_in_reach = False
    peer = join("news")
    while not peer.reason:
        peer.send(b"x" * 4000)

    assert peer.connection.received <= MAX_EARLY_SIZE + 4000
    assert peer.reason == "the client sent more than 65536 bytes too early"
    assert peer.client.read() == b""


def test_connection_opens_although_the_bus_is_out_of_reach(hub, join):
    hub.bus.is_in_reach = False
    peer = join("news")
    hub._tick(1, time.monotonic() + CONFIRM_TIMEOUT)
    assert peer.events() in ([], [Ping()])  # it may be the second in which it is due

    hub.bus.confirm()
    hub.bus.publish("news", b"hello")
    hub.settle()

    assert peer.events()[-1] == TextMessage("hello")


@pytest.mark.parametrize(
    "end",
    [
        lambda hub: hub.disconnect(hub.bus, Disconnect(("user:7",), None, 4401)),
        lambda hub: hub._expire(1000.0),
        lambda hub: drain(hub),
    ],
    ids=["disconnect", "expiry", "stop"],
)
def test_connection_that_ends_before_it_is_open_is_refused_by_http(hub, join, end):
    hub.bus.is_in_reach = False
    peer = join("news", labels=("user:7",), expires=1000.0)

    end(hub)

    assert re.fullmatch(REFUSAL, peer.client.read(), re.DOTALL)
    assert peer.client.is_at_end
    assert peer.reason
    assert not hub.waiting


# Whose a connection is, and for how long.


KINDS = {
    "websocket": {"head": HEAD},
    "sse": {"head": b"HTTP/1.1 200 OK\r\n"},
    "poll": {"head": b"HTTP/1.1 200 OK\r\n"},
}
LAST_BYTES = {
    "websocket": rb".*\x88\x1a\x11\x31disconnected by the site",
    "sse": rb".*retry: \d+\n\n",
    "poll": rb".*Content-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("labels", "channel", "matches"),
    [
        (("user:7",), None, True),
        (("session:a",), None, True),
        (("user:7", "session:a"), None, True),
        (("user:7",), "b", True),
        ((), "a", True),
        (("user:8",), None, False),
        (("user:7", "session:b"), None, False),
        (("user:7",), "c", False),
        ((), "c", False),
    ],
)
def test_disconnect_ends_what_matches_all_that_it_says(hub, join, kind, labels, channel, matches):
    peer = join("a", "b", engine=kind, labels=("user:7", "session:a"), **KINDS[kind])

    hub.disconnect(hub.bus, Disconnect(labels, channel, 4401))

    assert (peer.connection.ending is not None) == matches
    if matches:
        assert re.fullmatch(LAST_BYTES[kind], peer.client.read(), re.DOTALL)
        peer.client.close()
        hub.turn_until(lambda: peer.reason)
        assert peer.reason == "disconnected by the site"


def test_disconnect_leaves_connections_of_another_bus_alone(make_hub, hub, join):
    peer = join("news", labels=("user:7",))

    hub.disconnect(make_hub().bus, Disconnect(("user:7",), None, 4401))

    assert peer.connection.ending is None


def test_poll_that_is_taking_its_answer_gets_it_whole(hub, join):
    peer = join("news", engine="poll", labels=("user:7",), **KINDS["poll"])
    hub.bus.publish("news", b"x" * 100_000)
    hub.settle()

    hub.disconnect(hub.bus, Disconnect(("user:7",), None, 4401))
    hub.turn_until(lambda: peer.client.read() and peer.reason)

    assert peer.client.received.endswith(b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000)


@pytest.mark.parametrize("kind", ["websocket", "sse"])
def test_connection_ends_when_its_time_is_over(hub, join, kind):
    short, long = (join("news", engine=kind, expires=expires, **KINDS[kind]) for expires in (1000.0, 2000.0))

    hub._expire(999.9)
    assert short.connection.ending is None
    hub._expire(1000.0)

    assert short.connection.ending == "its time is over"
    assert long.connection.ending is None
    if kind == "websocket":
        assert short.wait_for_end() == [CloseConnection(1001, "its time is over")]
    hub.close(short.connection, "")
    hub.close(long.connection, "")
    assert not hub.expiring


def test_user_holds_no_more_connections_than_each_may(make_hub, make_client):
    hub = make_hub(connections_per_user=2)
    held = [Peer(hub, make_client(), websocket("news", labels=("user:7", "session:a"))) for _ in range(2)]
    refused = make_client()
    hub.take(refused.give_to_hub(), held[0].connection.audience.engine, websocket("news", labels=("user:7",)))
    assert re.fullmatch(REFUSAL, refused.read(), re.DOTALL)
    assert b"101" not in refused.received and b"Upgrade" not in refused.received
    for labels in (("user:77",), ("session:a",), ()):
        Peer(hub, make_client(), websocket("news", labels=labels))

    hub.close(held[0].connection, "")

    Peer(hub, make_client(), websocket("news", labels=("user:7",)))


def test_bus_is_kept_for_those_who_only_publish(hub, client):
    elsewhere = BusAddress("local:/elsewhere")
    hub.followings[elsewhere] = hub.bus
    hub.announced = None
    opening = websocket(publish=("a",))
    peer = Peer(hub, client, replace(opening, offload=replace(opening.offload, bus=elsewhere)))

    hub._tick(1, time.monotonic())
    assert elsewhere in hub.followings
    hub.close(peer.connection, "")
    hub._tick(2, time.monotonic())

    assert elsewhere not in hub.followings
