"""How a hub calls applications for what happens to its connections; the test is the event thread."""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import socket
import threading
import time
from dataclasses import replace

import pytest
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.bus.control import Disconnect
from gunicorn_realtime.bus.message import Message, Stamp
from gunicorn_realtime.hub import events as events_module
from gunicorn_realtime.hub import subscriptions as subscriptions_module
from gunicorn_realtime.hub.events import MAX_PENDING, MAX_PENDING_SIZE, RETRY_INTERVAL
from gunicorn_realtime.hub.feed import OVERHEAD
from gunicorn_realtime.plumbing.events import (
    BEGUN,
    Answer,
    Close,
    Effect,
    EventCall,
    EventKind,
    Outcome,
    Send,
    Subscribe,
    Unsubscribe,
    encode_effects,
)
from gunicorn_realtime.plumbing.frames import Frame
from gunicorn_realtime.plumbing.handover import Handover
from gunicorn_realtime.plumbing.lines import receive
from gunicorn_realtime.plumbing.offload import Events
from gunicorn_realtime.protocols.websocket_deflate import Deflate
from tests.hub.test_websocket import BINARY, TEXT, Peer, close_frame, websocket
from tests.protocols.test_websocket import frame

ALL_KINDS = tuple(EventKind)
ENVIRON = '{"PATH_INFO":"/chat"}'


class Thread:
    """An event call, taken by the test."""

    def __init__(self, hub, line: socket.socket) -> None:
        self.hub = hub
        hub.turn_until(lambda: select.select([line], [], [], 0)[0])
        data, [fd] = receive(line)
        self.call = EventCall.from_frame(Frame.decode(data))
        self.event = self.call.event
        self.end = socket.socket(fileno=fd)
        self.end.setblocking(False)

    def read(self) -> bytes:
        """Return the event's data."""
        data = bytearray()

        def is_complete() -> bool:
            try:
                data.extend(self.end.recv(1 << 16))
            except BlockingIOError:
                pass
            return len(data) >= self.call.size

        if self.call.size:
            self.hub.turn_until(is_complete)
        return bytes(data)

    def begin(self) -> None:
        self.end.sendall(BEGUN)

    def answer(self, *effects: Effect, outcome: Outcome = Outcome.DONE, state: str | None = None) -> None:
        data = BEGUN + Answer(outcome, effects, state).encode()
        self.end.setblocking(True)
        sender = threading.Thread(target=self.end.sendall, args=[data])  # the hub reads meanwhile
        sender.start()
        self.hub.turn_until(lambda: not sender.is_alive())
        self.end.close()

    def die(self) -> None:
        self.end.close()


@pytest.fixture
def take(hub, lines):
    """Take the next call, as an event thread does; `take.is_idle()`: there is none."""

    taken = []

    def take() -> Thread:
        taken.append(Thread(hub, lines.events_worker))
        return taken[-1]

    def is_idle() -> bool:
        hub.settle()
        return not select.select([lines.events_worker], [], [], 0)[0]

    take.is_idle = is_idle
    yield take
    for thread in taken:
        thread.end.close()


@pytest.fixture
def join(hub, make_client):
    """Open a WebSocket whose application wants to know of these kinds of events."""

    def join(
        *channels: str,
        kinds=(EventKind.RECEIVED, EventKind.CLOSED),
        timeout=60.0,
        effects=(),
        buffer_size=1,
        **options,
    ) -> Peer:
        opening = websocket(*channels, **options)
        particulars = {**opening.offload.particulars, "effects": encode_effects(effects)}
        offload = replace(opening.offload, events=Events(kinds, timeout, '{"n":1}'), particulars=particulars)
        return Peer(
            hub, make_client(buffer_size=buffer_size), replace(opening, offload=offload, environ=ENVIRON)
        )

    return join


def event_opening() -> Handover:
    opening = websocket()
    offload = replace(opening.offload, events=Events((EventKind.RECEIVED,)))
    return replace(opening, offload=offload, environ=ENVIRON)


def text(data: str) -> bytes:
    return frame(TEXT, data.encode())


# One after the other.


def test_message_is_told_with_environ_and_state_and_what_comes_back_is_sent(hub, join, take):
    peer = join()
    peer.send(text("hello"))

    thread = take()
    assert (thread.event.kind, thread.event.is_binary, thread.event.state) == ("received", False, '{"n":1}')
    assert thread.call.environ == ENVIRON
    assert thread.read() == b"hello"
    thread.answer(Send(b"hi"), Send(b"\xff", is_binary=True), state='{"n":2}')
    peer.send(frame(BINARY, b"\x00"))
    thread = take()

    assert (thread.event.is_binary, thread.event.state) == (True, '{"n":2}')
    assert thread.read() == b"\x00"
    assert peer.events() == [TextMessage("hi"), BytesMessage(b"\xff")]
    assert not hub.bus.outbox.messages


def test_next_message_waits_for_the_answer_to_the_one_before(join, take):
    peer = join()
    peer.send(text("1") + text("2") + text("3"))

    for number in (b"1", b"2", b"3"):
        thread = take()
        assert thread.read() == number
        assert take.is_idle()
        thread.answer()
    assert take.is_idle()


def test_messages_of_another_connection_do_not_wait(join, take):
    first, second = join(), join()
    first.send(text("1"))
    second.send(text("2"))

    assert {take().read(), take().read()} == {b"1", b"2"}


def test_large_message_crosses_in_pieces(join, take):
    data = os.urandom(1 << 20)
    peer = join(max_size=1 << 20)
    peer.client.sock.setblocking(True)
    sender = threading.Thread(target=peer.client.sock.sendall, args=[frame(BINARY, data)])
    sender.start()
    thread = take()
    sender.join()

    assert thread.read() == data


def test_calls_under_way_are_bounded(monkeypatch, hub, join, take):
    monkeypatch.setattr(events_module, "MAX_RUNNING", 2)
    for number in range(4):
        join().send(text(str(number)))

    threads = [take(), take()]
    assert take.is_idle()
    threads[0].answer()
    assert take().read() == b"2"
    threads[1].answer()
    assert take().read() == b"3"


def test_call_waits_while_the_queue_of_calls_is_full(monkeypatch, hub, join, take):
    monkeypatch.setattr(events_module, "MAX_RUNNING", 10_000)
    is_full = []
    attempts = []
    original = socket.send_fds

    def send_fds(*args):
        attempts.append(time.monotonic())
        if is_full:
            raise BlockingIOError(errno.EAGAIN, "full")
        return original(*args)

    monkeypatch.setattr(socket, "send_fds", send_fds)
    is_full.append(True)
    peer, other = join(), join()
    peer.send(text("hello"))
    other.send(text("other"))
    hub.turn_until(lambda: len(attempts) == 5)
    # An attempt costs something, so they are spread in time; the first two are the clients'.
    pauses = [later - sooner for sooner, later in itertools.pairwise(attempts)]
    assert min(pauses) > RETRY_INTERVAL / 2

    is_full.clear()
    assert [take().read(), take().read()] == [b"hello", b"other"]


def test_client_is_not_read_while_its_messages_pile_up(hub, join, take):
    peer = join()
    for number in range(MAX_PENDING + 1):
        peer.send(text(str(number)))
    assert not peer.connection.is_read

    thread = take()
    thread.answer()
    hub.turn_until(lambda: peer.connection.is_read)
    for number in range(1, MAX_PENDING + 1):
        thread = take()
        assert thread.read() == str(number).encode()
        thread.answer()


def test_one_read_of_many_messages_is_taken_up_piece_by_piece(hub, join, take):
    peer = join(deflate=[None], max_size=1 << 16)
    frames = [
        frame(TEXT, Deflate().compress(b"%05d " % number + b"x" * 60_000), is_compressed=True)
        for number in range(100)
    ]
    peer.client.sock.sendall(b"".join(frames))
    for number in range(100):
        thread = take()
        assert thread.read().startswith(b"%05d " % number)
        assert len(peer.connection.dialogue.pending) <= MAX_PENDING + 1
        assert hub.calls.size <= MAX_PENDING_SIZE + 2 * (60_000 + OVERHEAD)
        thread.answer()
    assert take.is_idle()
    assert hub.calls.size == 0


def test_clients_are_not_read_and_not_taken_while_too_much_waits_for_applications(
    monkeypatch, hub, join, take, make_client
):
    monkeypatch.setattr(events_module, "MAX_SIZE", 5000)
    gone, other = join(), join()
    gone.send(text("x" * 4000))
    gone.client.close()
    hub.turn_until(lambda: gone.connection.fd < 0)
    other.send(text("hello"))
    assert not other.connection.is_read
    late = make_client()
    opening = event_opening()
    hub.take(late.give_to_hub(), hub._engine(opening), opening)
    assert late.read().startswith(b"HTTP/1.1 503 ")

    for _ in range(3):  # what it sent, its end, and what the other sent
        take().answer()
    hub.turn_until(lambda: other.connection.is_read and not hub.calls.is_busy)
    assert hub.calls.size == 0


def test_client_is_not_read_while_much_of_it_waits(hub, join):
    peer = join(max_size=MAX_PENDING_SIZE)
    for _ in range(3):
        assert peer.connection.is_read
        peer.send(frame(BINARY, b"x" * (MAX_PENDING_SIZE // 3)))
        hub.settle()

    assert not peer.connection.is_read


# What goes wrong.


def test_call_whose_worker_died_before_it_began_is_made_once_more(hub, join, take):
    peer = join()
    peer.send(text("hello"))

    take().die()
    thread = take()
    assert thread.read() == b"hello"
    thread.answer(Send(b"hi"))
    hub.turn_until(lambda: peer.events() == [TextMessage("hi")])
    peer.send(text("again"))
    take().die()
    take().die()

    assert peer.wait_for_end() == [TextMessage("hi"), CloseConnection(1011, "its worker has died")]


def test_call_whose_worker_died_after_it_began_is_not_made_again(hub, join, take):
    peer = join()
    peer.send(text("hello"))
    thread = take()
    thread.begin()
    hub.turn_until(lambda: any(call.reader.is_begun for call in hub.calls._running))
    thread.die()

    assert peer.wait_for_end() == [CloseConnection(1011, "its worker has died")]
    peer.client.close()
    thread = take()
    assert (thread.event.kind, thread.event.code) == ("closed", 1011)


def test_call_that_takes_too_long_ends_the_connection(join, take):
    peer = join(timeout=0.01)
    peer.send(text("hello"))
    thread = take()
    thread.begin()

    assert peer.wait_for_end() == [CloseConnection(1011, "it took longer than 0.01 s")]
    assert thread.end.recv(10) == b"hello"
    assert thread.end.recv(10) == b""  # the thread is told


@pytest.mark.parametrize(
    ("outcome", "code", "reason"),
    [
        (Outcome.FAILED, 1011, "the application failed"),
        (Outcome.REFUSED, 1008, "the application refused it"),
    ],
)
def test_failed_or_refused_call_has_no_effect_but_the_end(join, take, outcome, code, reason):
    peer = join()
    peer.send(text("1") + text("2"))
    take().answer(Send(b"never"), outcome=outcome)

    assert peer.wait_for_end() == [CloseConnection(code, reason)]
    peer.client.close()
    thread = take()
    assert (thread.event.kind, thread.event.code) == ("closed", code)  # and "2" was not told


def test_garbage_for_an_answer_ends_the_connection(join, take):
    peer = join()
    peer.send(text("hello"))
    take().end.sendall(b"garbage")

    [end] = peer.wait_for_end()
    assert end == CloseConnection(1011, "a thread does not say that it begins")


# Kinds.


def test_only_what_the_application_wants_is_told(hub, join, take):
    peer = join(kinds=(EventKind.RECEIVED,))
    assert take.is_idle()
    peer.send(text("hello"))
    take().answer()
    peer.client.close()
    hub.turn_until(lambda: peer.connection.fd < 0)

    assert take.is_idle()


def test_opening_is_told_and_then_the_rest(join, take):
    peer = join(kinds=ALL_KINDS)
    peer.send(text("hello"))

    thread = take()
    assert thread.event.kind == "opened"
    assert take.is_idle()
    thread.answer()
    assert take().event.kind == "received"


@pytest.mark.parametrize(
    ("sent", "code"),
    [(close_frame(1000), 1000), (close_frame(4321), 4321), (b"\x88\x80\0\0\0\0", 1005), (b"", 1006)],
)
def test_closing_is_told_with_the_clients_code_behind_what_it_sent(hub, join, take, sent, code):
    peer = join()
    peer.send(text("hello"))
    peer.send(sent)
    peer.client.close()
    hub.turn_until(lambda: peer.connection.fd < 0)

    thread = take()
    assert thread.read() == b"hello"
    thread.answer(Send(b"to nobody"))
    thread = take()
    assert (thread.event.kind, thread.event.code) == ("closed", code)
    thread.answer(Send(b"to nobody"))
    hub.turn_until(lambda: not hub.calls.is_busy)


def test_closing_is_told_with_the_code_of_the_site(hub, join, take):
    peer = join(labels=("user:7",))
    hub.disconnect(hub.bus, Disconnect(("user:7",), None, 4401))
    assert [type(event) for event in peer.wait_for_end()] == [CloseConnection]
    peer.client.close()

    assert take().event.code == 4401


# Effects.


def test_what_connect_sends_comes_first(join):
    peer = join(effects=[Send(b"welcome"), Close(4403, "not for you")])

    assert peer.wait_for_end() == [TextMessage("welcome"), CloseConnection(4403, "not for you")]


def test_nothing_comes_behind_a_close(join, take):
    peer = join()
    peer.send(text("hello"))
    take().answer(Send(b"1"), Close(1000), Send(b"2"))

    assert peer.wait_for_end() == [TextMessage("1"), CloseConnection(1000, "")]


def test_direct_message_in_an_envelope_has_no_channel(join):
    peer = join(effects=[Send(b"hi"), Send(b"\xff", is_binary=True)], envelope="json")

    assert [event.data for event in peer.events()] == [
        '{"id":null,"channel":null,"event":"message","data":"hi"}',
        '{"id":null,"channel":null,"event":"message","data":"/w==","base64":true}',
    ]


def test_client_that_does_not_read_what_handlers_send_is_cut(hub, join, take):
    peer = join()
    for _ in range(2):
        peer.send(text("more"))
        take().answer(Send(b"x" * 600_000))

    hub.turn_until(lambda: peer.reason)
    assert peer.reason == "slow client"
    thread = take()
    assert (thread.event.kind, thread.event.code) == ("closed", 1006)
    thread.answer()
    assert take.is_idle()
    assert not hub.calls.is_busy


def test_client_that_dies_while_its_answer_is_applied_is_told_of_once(hub, join, take):
    peer = join()
    peer.send(text("hello"))
    thread = take()
    peer.connection.stop_reading()  # so that it is the answer that finds it gone
    peer.client.close()
    thread.answer(Send(b"1"))

    closed = take()
    assert closed.event.kind == "closed"
    closed.answer()
    assert take.is_idle()
    assert not hub.calls.is_busy


def test_handler_may_send_much_to_a_client_that_reads(hub, join, take):
    peer = join()
    peer.send(text("more"))
    take().answer(*[Send(b"x" * 100_000)] * 12)
    hub.turn_until(lambda: len(texts(peer)) == 12)

    assert peer.reason is None


# Following other channels.


def followed(peer: Peer) -> list[str]:
    return [feed.channel for feed in peer.connection.audience.feeds]


def texts(peer: Peer) -> list[str]:
    return [event.data for event in peer.events() if isinstance(event, TextMessage)]


def test_subscribed_channel_is_had_from_then_on_and_unsubscribed_no_more(hub, join):
    peer, other = join("a"), join("b")
    hub.bus.publish("b", b"before")
    hub.settle()
    hub.effects.apply(peer.connection, [Subscribe(Channel("b")), Subscribe(Channel("b"))])
    hub.bus.publish("b", b"1")
    hub.bus.publish("a", b"2")
    hub.settle()
    hub.effects.apply(peer.connection, [Unsubscribe("a"), Unsubscribe("never")])
    hub.bus.publish("a", b"3")
    hub.bus.publish("b", b"4")
    hub.settle()

    assert texts(peer) == ["1", "2", "4"]
    assert texts(other) == ["before", "1", "4"]
    assert followed(peer) == ["b"]


def test_channel_may_be_left_and_followed_again(hub, join):
    peer = join("a")
    for number in range(3):
        hub.effects.apply(peer.connection, [Unsubscribe("a")])
        hub.bus.publish("a", b"lost")
        hub.settle()
        hub.effects.apply(peer.connection, [Subscribe(Channel("a"))])
        hub.bus.publish("a", b"%d" % number)
        hub.settle()

    assert texts(peer) == ["0", "1", "2"]


def test_subscription_waits_for_the_bus(hub, join):
    peer = join("a")
    hub.bus.is_in_reach = False
    hub.effects.apply(peer.connection, [Subscribe(Channel("b")), Subscribe(Channel("c")), Unsubscribe("c")])
    assert followed(peer) == ["a"]

    hub.bus.confirm()
    assert followed(peer) == ["a", "b"]
    hub.bus.publish("b", b"hello")
    hub.settle()
    assert texts(peer) == ["hello"]


def test_feed_that_nobody_waits_for_any_more_is_left(hub, join):
    peer = join("a")
    hub.bus.is_in_reach = False
    hub.effects.apply(peer.connection, [Subscribe(Channel("b"))])
    peer.client.close()
    hub.turn_until(lambda: peer.connection.fd < 0)

    assert [feed.channel for feed in hub.bus.idle] == ["b"]
    hub.bus.confirm()


def test_slow_client_gets_a_channel_from_when_it_subscribed(hub, join):
    slow, other = join("a"), join("b", buffer_size=1 << 20)
    large = [b"%d " % number + b"x" * 3000 for number in range(10)]
    for data in large:
        hub.bus.publish("a", data)
    hub.settle()
    assert slow.connection in hub.lagging
    hub.bus.publish("b", b"before")
    hub.settle()

    hub.effects.apply(slow.connection, [Subscribe(Channel("b"))])
    hub.bus.publish("b", b"after")
    hub.settle()
    hub.turn_until(lambda: "after" in texts(slow))

    assert texts(slow) == [data.decode() for data in large] + ["after"]
    assert texts(other) == ["before", "after"]
    hub.turn_until(lambda: not hub.lagging)
    hub.bus.publish("b", b"last")
    hub.settle()
    assert texts(slow)[-1] == "last"


def test_too_many_channels_end_the_connection(monkeypatch, hub, join):
    monkeypatch.setattr(subscriptions_module, "MAX_CHANNELS", 3)
    peer = join("a")
    hub.effects.apply(peer.connection, [Subscribe(Channel(name)) for name in "bcd"])

    [end] = peer.wait_for_end()
    assert end == CloseConnection(1011, "it follows 3 channels, as many as it may")


def keep(hub, name: str, slow_client=SlowClient.RESUME) -> Channel:
    """Let the hub know a channel with history and three messages of it."""
    channel = Channel(name, 10, 300.0, slow_client)
    hub.bus.epoch = "e"
    feed = hub.bus.follow(channel)
    feed.held = None
    for id_ in (1, 2, 3):
        stamp = Stamp("e", id_, id_ - 1)
        hub.bus.fanout.append(feed, Message(name, b"%d" % id_, stamp=stamp))
    hub.settle()
    return channel


@pytest.mark.parametrize(
    ("cursor", "expected"),
    [
        (None, []),
        ("e-1", ["2", "3"]),
        ("e-3", []),
        ("other-1", ["reset unknown"]),
        ("garbage", ["reset unknown"]),
    ],
)
def test_what_a_channel_had_since_a_cursor_comes_first_and_without_ids(hub, join, cursor, expected):
    peer = join("a", envelope="json")
    channel = keep(hub, "kept")
    hub.effects.apply(peer.connection, [Subscribe(channel, cursor)])

    received = [json.loads(data) for data in texts(peer)]
    assert [
        f"reset {fields['data']['reason']}" if fields["event"] == "reset" else fields["data"]
        for fields in received
    ] == expected
    assert all(fields["id"] is None for fields in received)


def test_current_value_comes_with_its_channel(hub, join):
    peer = join("a")
    hub.effects.apply(peer.connection, [Subscribe(keep(hub, "price", SlowClient.LATEST))])

    assert texts(peer) == ["3"]


def test_client_that_is_gone_when_the_bus_confirms_its_channel_takes_nothing_from_the_others(hub, join):
    gone, other = join(envelope="json"), join()
    hub.bus.is_in_reach = False
    for peer in (gone, other):
        # It is told of a cursor that means nothing here, and so found to be gone.
        hub.effects.apply(peer.connection, [Subscribe(Channel("b", 10, 300.0), "unknown-1")])
    gone.connection.stop_reading()
    gone.client.close()

    hub.bus.confirm()

    assert gone.connection.fd < 0
    assert followed(other) == ["b"]
