"""What a hub does with its connections, whatever becomes of their clients."""

from __future__ import annotations

import os
import re
import socket
import time

import pytest

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.engines import poll
from gunicorn_realtime.hub import audience as audience_module
from gunicorn_realtime.hub import fanout
from gunicorn_realtime.hub.connection import Connection
from gunicorn_realtime.hub.draining import drain, say_goodbye
from gunicorn_realtime.hub.process import CONFIRM_TIMEOUT, LINGER
from gunicorn_realtime.plumbing.frames import MAX_FRAME_SIZE, Frame, Kind
from gunicorn_realtime.plumbing.handover import HandBack, Handover, announcement
from gunicorn_realtime.plumbing.lines import receive
from gunicorn_realtime.plumbing.offload import Offload
from tests.hub.conftest import TIMEOUT, LineEngine, handover

HEAD = b"HTTP/1.1 200 OK\r\nX: y\r\n"
RETRY = rb"retry: [0-9]+\n\n"
SSE_HEAD = re.escape(HEAD) + rb"Connection: close\r\n\r\n" + RETRY
HEARTBEAT = rb"(?::\n)?"  # the second may be the one in which it is due
SSE_REFUSAL = rb"HTTP/1.1 200 OK\r\n.*Content-Type: text/event-stream\r\n.*\r\n\r\n" + RETRY


def sse(*channels: str, **options: object) -> Handover:
    return handover(*channels, head=HEAD, **options)


def assert_matches(pattern: bytes, data: bytes) -> None:
    assert re.fullmatch(pattern, data, re.DOTALL), data


def assert_forgotten(hub, connection: Connection) -> None:
    assert connection.fd == -1
    assert connection not in [*hub.connections.values(), *hub.opening, *hub.lagging]
    assert not hub.limits.per_address
    assert not connection.audience.is_used
    assert not any(connection in waiting for waiting in hub.waiting.values())
    hub._tick(1, time.monotonic())
    assert not hub.audiences
    assert not hub.engines


# Handovers.


@pytest.fixture
def hand(hub, lines):
    """Send a frame as a worker does, and let the hub take it."""

    def send(frame: Frame, *clients) -> None:
        lines.send(frame, [client.server_end.fileno() for client in clients])
        for client in clients:
            client.server_end.close()
        hub._take_handovers()

    return send


def test_connection_that_is_handed_over_gets_head_and_messages(hub, hand, client):
    hand(sse("news").frame(), client)
    hub.bus.publish("news", b"hello")
    hub.settle()

    assert_matches(SSE_HEAD + b"data: hello\n\n", client.read())


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.HANDOVER, {}),
        Frame(Kind.HAND_BACK, {}),
        handover("news", engine="gopher").frame(),
        handover("news", heartbeat="often").frame(),
        handover("news", heartbeat=0).frame(),
        handover("news", retry=5).frame(),
        handover("news", event="two\nlines").frame(),
        Handover(
            Offload("sse", ("news",), BusAddress("carrier-pigeon:")), "", "", True, True, b"", b""
        ).frame(),
    ],
    ids=["fields", "kind", "engine", "heartbeat", "no heartbeat", "retry", "event", "bus"],
)
def test_handover_that_the_hub_cannot_take_closes_the_connection(hub, hand, client, caplog, frame):
    hand(frame, client)

    client.read()
    assert client.is_at_end
    assert not hub.connections
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_handover_that_fails_leaves_the_next_one_alone(hub, hand, make_client):
    hand(handover("news", engine="gopher").frame(), make_client())
    client = make_client()

    hand(sse("news").frame(), client)

    assert_matches(SSE_HEAD, client.read())


def test_connection_whose_engine_fails_is_closed(hub, client, caplog):
    class Broken(LineEngine):
        def open(self, connection, handover, cursor):
            raise ZeroDivisionError

    fd = client.give_to_hub()
    hub.take(fd, Broken(), handover("news"))

    client.read()
    assert client.is_at_end
    assert not hub.connections
    assert "ZeroDivisionError" in caplog.text


def test_hub_without_workers_and_arbiter_reads_no_more(hub, lines, caplog):
    hub.hand_watcher.start(hub._take_handovers)
    lines.lines[0].hand_worker.close()

    hub.turn_until(lambda: not hub.hand_watcher.active)

    assert not caplog.records


def test_announced_bus_is_followed_before_anybody_follows_a_channel(hub, hand):
    bus = BusAddress("local:/elsewhere")
    hub.followings[bus] = hub.bus

    hand(announcement(bus))

    assert hub.announced == bus


# Refusals.


def test_connection_beyond_the_limit_is_refused(make_hub, make_client):
    hub = make_hub(connections=2)
    for _ in range(2):
        hub.give(make_client(), sse("news"))
    refused = make_client()

    hub.take(refused.give_to_hub(), LineEngine(), sse("news"))

    assert_matches(SSE_REFUSAL, refused.read())
    assert refused.is_at_end
    assert len(hub.connections) == 2


def test_address_beyond_its_limit_is_refused_until_one_of_its_connections_ends(make_hub, make_client):
    hub = make_hub(connections_per_address=1)
    first = hub.give(make_client(), sse("news"))
    refused = make_client()
    hub.take(refused.give_to_hub(), LineEngine(), sse("news"))
    assert_matches(SSE_REFUSAL, refused.read())
    hub.give(make_client(), sse("news", client=("192.0.2.7", 1)))
    hub.give(make_client(), sse("news", client="/run/proxy.sock"))

    hub.close(first, "")

    hub.give(make_client(), sse("news"))


def test_client_that_left_before_it_was_refused_harms_nothing(make_hub, make_client):
    hub = make_hub(connections=1)
    hub.give(make_client(), sse("news"))
    gone = make_client()
    fd = gone.give_to_hub()
    gone.close()

    hub.take(fd, LineEngine(), sse("news"))

    with pytest.raises(OSError):
        os.fstat(fd)


# The client leaves, in each state.


def test_client_that_left_before_its_stream_began_is_forgotten(hub, client):
    fd = client.give_to_hub()
    client.close()

    hub.take(fd, hub._engine(sse("news")), sse("news"))

    [(connection, reason)] = hub.reasons.items()
    assert reason == "the client left (Broken pipe)"
    assert_forgotten(hub, connection)


def test_client_that_leaves_while_the_bus_is_out_of_reach_is_forgotten(hub, client):
    hub.bus.is_in_reach = False
    connection = hub.give(client, sse("news"))
    assert client.read() == b""

    client.close()
    hub.turn_until(lambda: hub.reasons)

    assert_forgotten(hub, connection)
    hub.bus.confirm()
    assert_forgotten(hub, connection)


def test_client_that_has_kept_up_leaves(hub, client):
    connection = hub.give(client, sse("news"))
    hub.bus.publish("news", b"hello")
    hub.settle()
    size = len(client.read())

    client.close()
    hub.turn_until(lambda: hub.reasons)

    assert hub.reasons == {connection: "the client left"}
    assert (connection.messages, connection.bytes) == (1, size)
    assert_forgotten(hub, connection)


def make_lag(hub, connection: Connection, channel: str = "news") -> None:
    while connection.lag is None:
        hub.bus.publish(channel, b"x" * 3000)
        hub.settle()


def test_client_that_lags_leaves(hub, client):
    connection = hub.give(client, sse("news"))
    make_lag(hub, connection)

    client.close()
    hub.turn_until(lambda: hub.reasons)

    assert hub.reasons[connection].startswith("the client left")
    assert_forgotten(hub, connection)


def begin_broadcast(hub, monkeypatch, channel: str = "news") -> None:
    """Let a broadcast be under way that has not reached everybody."""
    monkeypatch.setattr(fanout, "SLICE", -1.0)
    for module in (audience_module, fanout):
        monkeypatch.setattr(module, "DELIVERIES_BETWEEN_CLOCKS", 1)
    hub.bus.publish(channel, b"first")
    hub.turn()
    assert hub.bus.fanout.queue


def test_client_that_came_during_a_broadcast_leaves_during_it(hub, make_client, monkeypatch):
    others = [hub.give(make_client(), sse("news")) for _ in range(4)]
    begin_broadcast(hub, monkeypatch)
    client = make_client()
    connection = hub.give(client, sse("news"))
    assert connection.has_place and connection.audience.runs is not None

    client.close()
    hub.turn_until(lambda: hub.reasons)
    hub.settle()
    for other in others:
        hub.close(other, "")

    assert_forgotten(hub, connection)


def test_clients_leave_in_the_middle_of_a_broadcast(hub, make_client, monkeypatch):
    clients = [make_client() for _ in range(6)]
    connections = [hub.give(client, sse("news")) for client in clients]
    begin_broadcast(hub, monkeypatch)

    for client in clients:
        client.close()
    hub.settle()
    hub.turn_until(lambda: len(hub.reasons) == 6)

    for connection in connections:
        assert_forgotten(hub, connection)


def test_descriptor_of_who_left_is_not_written_to_when_it_is_somebody_elses(hub, make_client, monkeypatch):
    connections = [hub.give(make_client(), sse("news")) for _ in range(6)]
    begin_broadcast(hub, monkeypatch)
    for connection in connections:
        stranger, fd = make_client(), connection.fd
        hub.close(connection, "")
        os.dup2(stranger.server_end.fileno(), fd)

        hub.turn()

        assert stranger.read() == b""
        os.close(fd)


# Slow clients.


def test_client_that_falls_off_the_end_of_a_feed_is_cut(make_hub, client):
    hub = make_hub(feed_size=50_000, message_size=10_000)
    connection = hub.give(client, sse("news"))

    while connection.fd >= 0:
        hub.bus.publish("news", b"x" * 3000)
        hub.settle()
        assert hub.bus.feeds["news"].size <= 50_000
        hub._tick(1, time.monotonic())

    assert hub.reasons == {connection: "slow client"}
    client.read()
    assert connection.bytes == len(client.received)
    assert_forgotten(hub, connection)


def test_client_that_takes_nothing_for_too_long_is_cut(hub, client):
    connection = hub.give(client, sse("news"))
    make_lag(hub, connection)
    assert connection.lag

    hub._tick(1, connection.lag.since + 59)
    assert connection in hub.lagging
    hub._tick(2, connection.lag.since + 61)

    assert hub.reasons == {connection: "took nothing for 60 s"}
    assert_forgotten(hub, connection)


def test_channel_whose_only_client_lags_stays_followed(hub, client):
    connection = hub.give(client, sse("news"))
    make_lag(hub, connection)
    hub._tick(1, time.monotonic())
    hub.turn_until(lambda: client.read() and not hub.lagging)

    hub.bus.publish("news", b"hello")
    hub.settle()

    assert client.read().endswith(b"data: hello\n\n")


# Opening.


def test_stream_opens_when_all_its_channels_are_confirmed(hub, client):
    hub.bus.is_in_reach = False
    hub.give(client, sse("a", "b"))
    hub.confirm(hub.bus.feeds["a"])
    assert client.read() == b""

    hub.confirm(hub.bus.feeds["b"])

    assert_matches(SSE_HEAD, client.read())


def test_stream_opens_after_a_while_although_the_bus_is_out_of_reach(hub, client):
    hub.bus.is_in_reach = False
    connection = hub.give(client, sse("news"))
    hub._tick(1, time.monotonic())
    assert client.read() == b""

    hub._tick(2, time.monotonic() + CONFIRM_TIMEOUT)

    assert_matches(SSE_HEAD + HEARTBEAT, client.read())
    hub.bus.confirm()
    assert not hub.waiting
    hub.bus.publish("news", b"hello")
    hub.settle()
    assert_matches(SSE_HEAD + HEARTBEAT + b"data: hello\n\n", client.read())
    assert connection.fd >= 0


# Time.


def test_each_connection_gets_one_heartbeat_in_a_period(hub, make_client):
    clients = [make_client() for _ in range(10)]
    connections = [hub.give(client, sse("news", heartbeat=4)) for client in clients]

    for second in range(1, 5):
        hub._tick(second, time.monotonic())

    for client, connection in zip(clients, connections, strict=True):
        assert_matches(SSE_HEAD + b":\n", client.read())
        hub.close(connection, "")
        assert connection.bytes == len(client.received)


def test_heartbeat_finds_out_who_has_left(hub, client):
    connection = hub.give(client, sse("news", heartbeat=1))
    client.close()

    hub._tick(1, time.monotonic())

    assert hub.reasons == {connection: "the client left (Broken pipe)"}
    assert_forgotten(hub, connection)


def test_channel_is_followed_a_while_longer_than_anybody_listens(hub, client):
    connection = hub.give(client, sse("news"))
    hub.close(connection, "")
    now = time.monotonic()

    hub._tick(1, now)
    hub._tick(2, now + LINGER - 1)
    assert list(hub.bus.feeds) == ["news"]
    hub._tick(3, now + LINGER + 1)

    assert not hub.bus.feeds


# One-shot connections.


def long_poll(*channels: str, keep_alive: bool = True, rest: bytes = b"", timeout: float = 30) -> Handover:
    return handover(*channels, head=HEAD, engine="poll", keep_alive=keep_alive, rest=rest, timeout=timeout)


def answer(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def take_back(lines):
    """Receive a connection as a worker does; return it and what was read of it."""
    lines.back_worker.setblocking(False)
    taken = []

    def take() -> tuple[socket.socket, bytes]:
        data, [fd] = receive(lines.back_worker)
        taken.append(socket.socket(fileno=fd))
        hand_back = HandBack.from_frame(Frame.decode(data))
        assert (hand_back.client, hand_back.server) == (("192.0.2.1", 50000), ("192.0.2.2", 80))
        return taken[-1], hand_back.rest

    yield take
    for sock in taken:
        sock.close()
    with pytest.raises(BlockingIOError):
        receive(lines.back_worker)


def test_answered_poll_is_handed_back_with_what_was_read_of_it(hub, client, take_back):
    connection = hub.give(client, long_poll("chat", rest=b"GET /1"))
    client.sock.sendall(b" HTTP/1.1\r\n")
    hub.turn_until(lambda: connection.received)

    hub.bus.publish("chat", b"hello")
    hub.settle()

    assert client.read() == answer(b"hello")
    sock, rest = take_back()
    assert rest == b"GET /1 HTTP/1.1\r\n"
    sock.sendall(b"next")
    assert client.read() == answer(b"hello") + b"next"
    assert (connection.messages, connection.bytes) == (1, len(answer(b"hello")))
    assert_forgotten(hub, connection)


def test_poll_gets_exactly_one_of_the_messages_of_a_turn(hub, client, take_back):
    hub.give(client, long_poll("a", "b"))

    for channel in ("b", "a", "b"):
        hub.bus.publish(channel, b"from " + channel.encode())
    hub.settle()

    assert client.read() == answer(b"from b")
    take_back()


def test_poll_that_comes_during_a_broadcast_gets_exactly_one_message(
    hub, make_client, take_back, monkeypatch
):
    first = [make_client() for _ in range(4)]
    for client in first:
        hub.give(client, long_poll("chat", keep_alive=False))
    begin_broadcast(hub, monkeypatch, "chat")
    late = make_client()
    hub.give(late, long_poll("chat"))

    for data in (b"second", b"third"):
        hub.bus.publish("chat", data)
    hub.settle()

    assert [client.read() for client in first] == [
        HEAD + b"Connection: close\r\nContent-Length: 5\r\n\r\nfirst"
    ] * 4
    assert late.read() == answer(b"second")
    take_back()


def test_poll_whose_client_leaves_as_its_message_comes_ends_once(hub, make_client, take_back, caplog):
    leaver, stayer = make_client(), make_client()
    connection = hub.give(leaver, long_poll("chat"))
    hub.give(stayer, long_poll("chat"))
    leaver.close()

    hub.bus.publish("chat", b"hello")
    hub._run_slice()  # before the loop has seen that it left

    assert hub.reasons[connection] == "the client left (Broken pipe)"
    assert stayer.read() == answer(b"hello")
    take_back()
    assert_forgotten(hub, connection)
    assert "Traceback" not in caplog.text


def test_poll_without_a_message_ends_empty(hub, client, take_back):
    connection = hub.give(client, long_poll("chat", timeout=30))
    hub._tick(1, connection.opened + 29)
    assert client.read() == HEAD

    hub._tick(2, connection.opened + 31)

    assert client.read() == answer(b"")
    take_back()
    assert_forgotten(hub, connection)


def test_poll_of_a_connection_that_ends_is_closed_behind_the_answer(hub, client):
    connection = hub.give(client, long_poll("chat", keep_alive=False))

    hub.bus.publish("chat", b"hello")
    hub.settle()

    assert client.read().endswith(b"Connection: close\r\nContent-Length: 5\r\n\r\nhello")
    assert client.is_at_end
    assert hub.reasons == {connection: "answered"}


def test_answer_that_the_client_takes_slowly_is_finished_before_it_is_handed_back(hub, client, take_back):
    connection = hub.give(client, long_poll("chat"))
    body = b"x" * 100_000

    hub.bus.publish("chat", body)
    hub.bus.publish("chat", b"another")
    hub.settle()
    assert connection in hub.lagging
    hub.turn_until(lambda: client.read().endswith(body) and hub.reasons)

    assert client.received == answer(body)
    take_back()
    assert_forgotten(hub, connection)


def test_answer_on_its_way_is_finished_although_its_feed_has_gone_on(make_hub, client, take_back):
    hub = make_hub(feed_size=50_000, message_size=10_000)
    connection = hub.give(client, long_poll("chat"))
    hub.bus.publish("chat", b"x" * 9000)
    hub.settle()
    assert connection in hub.lagging

    for _ in range(20):
        hub.bus.publish("chat", b"y" * 9000)
        hub.settle()
    hub._tick(1, time.monotonic())
    hub.turn_until(lambda: client.read() and hub.reasons)

    assert client.received == answer(b"x" * 9000)
    take_back()


def test_request_behind_a_poll_that_is_not_open_yet_is_kept(hub, client, take_back):
    hub.bus.is_in_reach = False
    connection = hub.give(client, long_poll("chat", rest=b"GET "))
    client.sock.sendall(b"/next")
    hub.turn_until(lambda: connection.received)

    hub.bus.confirm()
    hub.bus.publish("chat", b"hello")
    hub.settle()

    assert client.read() == answer(b"hello")
    assert take_back()[1] == b"GET /next"


def test_client_that_sends_too_much_behind_a_poll_is_cut(hub, make_client):
    client = make_client()
    connection = hub.give(client, long_poll("chat"))
    sent = 0
    while connection.fd >= 0 and sent < 10 * poll.MAX_RECEIVED:
        sent += client.sock.send(b"x" * 10_000)
        hub.turn()

    assert hub.reasons == {connection: "the client sent more than 65536 bytes"}
    assert_forgotten(hub, connection)


def test_connection_that_cannot_be_handed_back_is_closed(hub, client, caplog):
    connection = hub.give(client, long_poll("chat", rest=b"x" * MAX_FRAME_SIZE))

    hub.bus.publish("chat", b"hello")
    hub.settle()

    assert client.read() == answer(b"hello")
    assert client.is_at_end
    assert "could not be handed back: a frame has" in hub.reasons[connection]
    assert_forgotten(hub, connection)


# The end.


def test_stopping_hub_says_goodbye_to_everybody_and_takes_nobody(hub, make_client):
    kept_up, polling, opening, refused, gone = (make_client() for _ in range(5))
    hub.give(kept_up, sse("news"))
    hub.give(polling, long_poll("news"))
    hub.bus.is_in_reach = False
    hub.give(opening, sse("other"))
    hub.give(gone, sse("other"))
    gone.close()
    hub.stop()

    hub.take(refused.give_to_hub(), LineEngine(), sse("news"))
    drain(hub)

    assert_matches(SSE_HEAD + RETRY, kept_up.read())
    assert polling.read() == answer(b"")
    assert_matches(SSE_REFUSAL, opening.read())
    assert_matches(SSE_REFUSAL, refused.read())
    assert all(client.is_at_end for client in (kept_up, polling, opening, refused))
    assert not hub.connections
    assert not hub.limits.per_address


def test_stopping_hub_waits_for_those_who_lag(hub, client):
    connection = hub.give(client, sse("news"))
    make_lag(hub, connection)
    hub.loop.run_callback(client.read)

    drain(hub)

    assert_matches(SSE_HEAD + b"(data: x{3000}\n\n)+" + RETRY, client.read())
    assert client.is_at_end


def test_stopping_hub_does_not_wait_for_ever(make_hub, client):
    hub = make_hub()
    hub.drain_timeout = 0.1
    connection = hub.give(client, sse("news"))
    make_lag(hub, connection)
    started = time.monotonic()

    drain(hub)

    assert time.monotonic() - started < TIMEOUT
    assert hub.reasons == {connection: "the hub stopped"}


def test_client_that_leaves_while_others_are_told_of_the_stop_harms_nothing(hub, client):
    hub.bus.is_in_reach = False
    connection = hub.give(client, sse("news"))
    hub.close(connection, "the client left")

    say_goodbye(hub, connection, set())

    assert hub.reasons == {connection: "the client left"}
