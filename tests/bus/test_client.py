from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import (
    Outgoing,
    Pong,
    Publisher,
    Received,
    Subscribed,
    Subscription,
    Unsubscribed,
)
from gunicorn_realtime.errors import BusUnavailable
from gunicorn_realtime.protocols import resp
from tests.bus.conftest import TIMEOUT, follow

SHORT_TIMEOUT = 0.2  # where nothing is expected to come

# Nobody listens there.
NO_BUS = "redis://someone:secret@127.0.0.1:1/0?client_name=test"


def outgoing(channel: str, data: bytes) -> Outgoing:
    return Outgoing(Channel(channel), data)


# Publishing


def test_published_message_reaches_who_follows_its_channel(publisher, subscription):
    follow(subscription, "news")

    publisher.publish("sports", b"not this")
    publisher.publish("news", b"hello\r\n\x00\xff")

    assert subscription.read(TIMEOUT) == Received("news", b"hello\r\n\x00\xff")


def test_publish_returns_the_number_of_subscribers(publisher, subscription):
    follow(subscription, "news")

    assert publisher.publish("news", b"hello") == 1
    assert publisher.publish("sports", b"hello") == 0


def test_messages_published_together_keep_their_order(publisher, subscription):
    follow(subscription, "news")

    cursors = publisher.send([outgoing("news", b"1"), outgoing("sports", b"2"), outgoing("news", b"3")])

    assert cursors == [None, None, None]
    assert subscription.read(TIMEOUT) == Received("news", b"1")
    assert subscription.read(TIMEOUT) == Received("news", b"3")


def test_no_messages_need_no_bus():
    assert Publisher(BusAddress(NO_BUS)).send([]) == []


def test_hubs_are_counted_by_the_channel_that_they_all_follow(publisher, subscription, bus_address):
    assert publisher.count_hubs() == 0
    follow(subscription, bus_address.hubs_channel)
    assert publisher.count_hubs() == 1


def test_threads_may_share_a_publisher_and_each_keeps_its_order(publisher, subscription):
    follow(subscription, "news")

    def publish(name: bytes) -> None:
        for number in range(100):
            publisher.publish("news", b"%b %d" % (name, number))

    with running(*(lambda name=name: publish(name) for name in (b"a", b"b", b"c", b"d"))):
        received = [subscription.read(TIMEOUT).payload.split() for _ in range(400)]

    for name in (b"a", b"b", b"c", b"d"):
        assert [int(number) for sender, number in received if sender == name] == list(range(100))


def test_publisher_works_on_both_sides_of_a_fork(bus_address, subscription):
    follow(subscription, "news")
    program = """if True:
        import os, sys
        from gunicorn_realtime.bus.address import BusAddress
        from gunicorn_realtime.bus.client import Publisher
        publisher = Publisher(BusAddress(sys.argv[1]))
        publisher.publish("news", b"before")
        child = os.fork()
        if not child:
            publisher.publish("news", b"child")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        publisher.publish("news", b"parent")
    """

    subprocess.run([sys.executable, "-c", program, bus_address.url], check=True, timeout=TIMEOUT)

    received = [subscription.read(TIMEOUT).payload for _ in range(3)]
    assert received == [b"before", b"child", b"parent"]


def test_publish_works_after_a_restart_of_the_bus(server, publisher):
    publisher.publish("news", b"before")
    server.restart()
    assert publisher.publish("news", b"after") == 0
    assert publisher.send([outgoing("news", b"after")] * 2) == [None, None]


def test_publish_without_a_bus_fails_until_it_is_back(server, publisher, bus_address):
    publisher.publish("news", b"before")
    server.stop()
    with pytest.raises(BusUnavailable, match=f"the bus at {bus_address.safe_url} is unavailable"):
        publisher.publish("news", b"lost")
    server.start()
    assert publisher.publish("news", b"after") == 0


def test_local_bus_that_nobody_serves_is_unavailable(directory):
    publisher = Publisher(BusAddress(f"local:{directory}"))
    with pytest.raises(BusUnavailable, match=f"no process serves the local bus: {directory} does not exist"):
        publisher.publish("news", b"hello")


def test_error_names_the_bus_without_user_and_password():
    publisher = Publisher(BusAddress(NO_BUS))
    with pytest.raises(BusUnavailable) as caught:
        publisher.publish("news", b"hello")
    assert str(caught.value).startswith("the bus at redis://127.0.0.1:1/0 is unavailable: ")
    assert "secret" not in str(caught.value)


# A server that fails


class FailingServer:
    """Greets a client as Redis does, then does with its command what a test wants."""

    def __init__(self, fail: Callable[[socket.socket], None]) -> None:
        self.commands: list[bytes] = []
        self._fail = fail
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    @property
    def address(self) -> BusAddress:
        return BusAddress(f"redis://127.0.0.1:{self._listener.getsockname()[1]}")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        for sock in (*self._connections, self._listener):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        parser = resp.CommandParser()
        while data := connection.recv(65536):
            parser.feed(data)
            for name, *_ in parser.commands():
                if name == b"CLIENT":
                    connection.sendall(resp.encode_simple_string("OK"))
                    continue
                self.commands.append(name)
                self._fail(connection)
                return


@pytest.fixture
def start_failing_server() -> Iterator[Callable[..., FailingServer]]:
    servers = []

    def start(fail: Callable[[socket.socket], None]) -> FailingServer:
        servers.append(FailingServer(fail))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def drop(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def keep_silent(connection: socket.socket) -> None:
    pass


def test_message_is_sent_once_to_a_server_that_drops_the_connection(start_failing_server):
    server = start_failing_server(drop)
    publisher = Publisher(server.address)

    with pytest.raises(BusUnavailable):
        publisher.publish("news", b"hello")
    with pytest.raises(BusUnavailable):
        publisher.send([outgoing("news", b"hello")])

    assert server.commands == [b"PUBLISH", b"PUBLISH"]
    publisher.close()


def test_server_that_does_not_answer_is_unavailable(start_failing_server):
    server = start_failing_server(keep_silent)
    publisher = Publisher(server.address, timeout=SHORT_TIMEOUT)

    with pytest.raises(BusUnavailable, match="Timeout reading"):
        publisher.publish("news", b"hello")

    assert server.commands == [b"PUBLISH"]
    publisher.close()


def test_subscription_does_not_connect_again_by_itself(start_failing_server):
    server = start_failing_server(drop)
    subscription = Subscription(server.address)
    subscription.connect()
    subscription.subscribe(["news"])

    for _ in range(2):
        with pytest.raises(BusUnavailable):
            subscription.read()
    subscription.close()
    with pytest.raises(BusUnavailable, match="is not connected"):
        subscription.subscribe(["sports"])

    assert server.commands == [b"SUBSCRIBE"]


# Following


def test_each_channel_of_a_subscription_is_confirmed_in_order(subscription):
    subscription.subscribe(f"room-{number}" for number in range(1000))

    replies = [subscription.read(TIMEOUT) for _ in range(1000)]

    assert replies == [Subscribed(f"room-{number}") for number in range(1000)]


def test_channel_that_was_left_sends_no_more(publisher, subscription):
    follow(subscription, "news", "sports")

    subscription.unsubscribe(["news"])
    assert subscription.read(TIMEOUT) == Unsubscribed("news")
    publisher.publish("news", b"not this")
    publisher.publish("sports", b"this")

    assert subscription.read(TIMEOUT) == Received("sports", b"this")


def test_no_channels_ask_for_nothing(subscription):
    follow(subscription, "news")
    subscription.unsubscribe([])
    subscription.subscribe([])
    subscription.ping(b"")
    assert subscription.read(TIMEOUT) == Pong(b"")


def test_pong_comes_after_what_was_published_before_its_ping(publisher, subscription):
    follow(subscription, "news")

    publisher.publish("news", b"hello")
    subscription.ping(b"token")

    assert subscription.read(TIMEOUT) == Received("news", b"hello")
    assert subscription.read(TIMEOUT) == Pong(b"token")


def test_ping_is_answered_also_when_nothing_is_followed(subscription):
    subscription.ping(b"token")
    assert subscription.read(TIMEOUT) == Pong(b"token")


def test_read_that_finds_nothing_does_not_break_the_stream(publisher, subscription):
    follow(subscription, "news")

    assert subscription.read(SHORT_TIMEOUT) is None
    assert subscription.read(0) is None
    publisher.publish("news", b"hello")

    assert subscription.read(TIMEOUT) == Received("news", b"hello")


def test_read_without_a_timeout_outlasts_the_connection_s(publisher, bus_address):
    subscription = Subscription(bus_address, timeout=SHORT_TIMEOUT)
    subscription.connect()
    follow(subscription, "news")
    late = threading.Timer(SHORT_TIMEOUT * 3, publisher.publish, ("news", b"hello"))
    late.start()

    assert subscription.read() == Received("news", b"hello")

    late.join(TIMEOUT)
    subscription.close()


def test_channel_that_is_not_utf8_keeps_its_name(publisher, subscription):
    channel = b"caf\xe9".decode("utf-8", "surrogateescape")
    follow(subscription, channel, "größe")

    publisher.publish(channel, b"1")
    publisher.publish("größe", b"2")

    assert subscription.read(TIMEOUT) == Received(channel, b"1")
    assert subscription.read(TIMEOUT) == Received("größe", b"2")


def test_large_message_arrives_whole(publisher, subscription):
    payload = bytes(range(256)) * 4096
    follow(subscription, "news")
    with running(lambda: publisher.publish("news", payload)):
        assert subscription.read(TIMEOUT) == Received("news", payload)


def test_subscribing_while_another_thread_reads(publisher, subscription):
    replies: list[object] = []

    def read() -> None:
        replies.extend(subscription.read() for _ in range(2))

    with running(read):
        subscription.subscribe(["news"])
        while not publisher.publish("news", b"hello"):
            pass

    assert replies == [Subscribed("news"), Received("news", b"hello")]


def test_closing_wakes_the_reader(subscription):
    follow(subscription, "news")
    errors: list[BusUnavailable] = []

    def read() -> None:
        with pytest.raises(BusUnavailable, match="is not connected") as caught:
            subscription.read()
        errors.append(caught.value)

    with running(read):
        subscription.close()

    assert len(errors) == 1


def test_reader_is_told_that_the_bus_has_gone(server, subscription, bus_address):
    follow(subscription, "news")
    server.stop()
    with pytest.raises(BusUnavailable, match=f"the bus at {bus_address.safe_url} is unavailable"):
        subscription.read()


def test_subscription_without_a_bus_is_unavailable():
    with pytest.raises(BusUnavailable, match=r"the bus at redis://127\.0\.0\.1:1/0 is unavailable"):
        Subscription(BusAddress(NO_BUS)).connect()


def test_subscription_that_was_closed_stays_so(bus_address):
    subscription = Subscription(bus_address)
    subscription.close()
    for use in (subscription.connect, subscription.read, lambda: subscription.ping(b"")):
        with pytest.raises(BusUnavailable, match="is not connected"):
            use()


# Addresses


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+cluster://h", "Redis Cluster .* is not supported yet"),
        ("http://h", "cannot begin with 'http'"),
        ("", r"redis://, rediss://, unix://, redis\+sentinel:// and local: are supported"),
        ("redis://h?socket_timeout=soon", "redis://h cannot be read"),
        ("redis://h?colour=red", "has a wrong option"),
        ("unix://", "has no path"),
        ("local:bus", "absolute"),
        ("local:", "absolute"),
    ],
)
def test_address_that_names_no_bus_is_refused(url, message):
    with pytest.raises(ValueError, match=message):
        Publisher(BusAddress(url))


def test_password_that_makes_the_url_unreadable_is_not_quoted():
    with pytest.raises(ValueError, match="redis:// cannot be read") as caught:
        Publisher(BusAddress("redis://:hunter/2@h"))
    assert "hunter" not in str(caught.value)


def test_options_in_the_url_cannot_bring_back_retries(start_failing_server):
    server = start_failing_server(drop)
    publisher = Publisher(
        BusAddress(
            server.address.url + "?retry_on_timeout=1&retry_on_error=x&protocol=3&health_check_interval=1"
        )
    )

    with pytest.raises(BusUnavailable):
        publisher.publish("news", b"hello")

    assert server.commands == [b"PUBLISH"]
    publisher.close()


class running:
    """Run functions in threads for as long as a `with` block lasts, and join them."""

    def __init__(self, *targets: Callable[[], object]) -> None:
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *exc_info: object) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
