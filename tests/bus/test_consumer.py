"""Consumers: in order, none lost of channels with history; each test on the local bus and on Redis."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from gunicorn_realtime.bus import consumer as module
from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.bus.client import Outgoing, Publisher
from gunicorn_realtime.bus.consumer import PAGE_SIZE, Consumer, Receiver
from gunicorn_realtime.bus.local import LocalBus
from gunicorn_realtime.bus.message import Message
from gunicorn_realtime.errors import BusUnavailable
from tests.bus.conftest import TIMEOUT
from tests.servers import RedisServer
from tests.waiting import wait_until

NEWS = Channel("site:news", history=1000, ttl=60)
SPORTS = Channel("site:sports", history=1000, ttl=60)
SHORT = Channel("site:short", history=10, ttl=60)
PLAIN = Channel("site:plain")


def nothing() -> None:
    pass


class Consuming:
    """A consumer that notes what it handles, and stops behind the message "last".

    Args:
        meanwhile: What happens while a message or reset is handled, by its text or reason.
    """

    def __init__(
        self,
        address: BusAddress,
        *channels: Channel,
        name: str = "test",
        meanwhile: dict[str, Callable[[], object]] | None = None,
    ) -> None:
        self.handled: list[str] = []
        self.resets: list[tuple[str, str]] = []
        self.meanwhile = meanwhile or {}
        receivers = [Receiver(channel, self.handle, self.note_reset) for channel in channels]
        self.consumer = Consumer(address, name, receivers)

    def handle(self, message: Message) -> None:
        text = message.data.decode()
        self.handled.append(text)
        self.meanwhile.get(text, nothing)()
        if text == "last":
            self.consumer.stop()

    def note_reset(self, channel: str, reason: str) -> None:
        self.resets.append((channel, reason))
        self.meanwhile.get(reason, nothing)()

    def run(self, started: Callable[[], object] = nothing) -> list[str]:
        self.consumer.run(started)
        return self.handled


@pytest.fixture
def send(publisher: Publisher) -> Callable[..., list[str | None]]:
    """Publish texts to a channel in one round trip."""

    def send(channel: Channel, *texts: str) -> list[str | None]:
        return publisher.send([Outgoing(channel, text.encode()) for text in texts])

    return send


@pytest.fixture
def stopped_before(bus_address: BusAddress, send) -> Callable[..., None]:
    """Let a consumer of channels begin and stop, so that its cursor is where the bus is now."""

    def stop(*channels: Channel) -> None:
        Consuming(bus_address, *channels).run(lambda: send(channels[0], "last"))

    return stop


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of a call that fails."""
    monkeypatch.setattr(module, "MAX_RETRY", 0.001)
    monkeypatch.setattr(module, "FIRST_RETRY", 0.001)


@pytest.fixture
def signalled() -> Iterator[Callable[[Consumer], Callable[[], None]]]:
    """Return a function that lets a signal from another thread stop a consumer."""
    before = signal.getsignal(signal.SIGUSR1)

    def prepare(consumer: Consumer) -> Callable[[], None]:
        signal.signal(signal.SIGUSR1, lambda *_: consumer.stop())
        return lambda: os.kill(os.getpid(), signal.SIGUSR1)

    yield prepare
    signal.signal(signal.SIGUSR1, before)


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


# From now on, and from the cursor on


def test_new_consumer_handles_what_is_published_from_its_start_on(bus_address, send):
    send(NEWS, "before")
    assert Consuming(bus_address, NEWS).run(lambda: send(NEWS, "1", "2", "last")) == ["1", "2", "last"]


def test_consumer_goes_on_where_it_stopped(bus_address, send):
    Consuming(bus_address, NEWS).run(lambda: send(NEWS, "1", "last", "2", "3"))
    send(NEWS, "4")

    assert Consuming(bus_address, NEWS).run(lambda: send(NEWS, "last")) == ["2", "3", "4", "last"]


def test_consumer_that_had_nothing_to_handle_yet_goes_on_from_its_start(bus_address, send):
    idle = Consuming(bus_address, NEWS)
    idle.run(idle.consumer.stop)
    send(NEWS, "while away", "last")

    assert Consuming(bus_address, NEWS).run() == ["while away", "last"]


def test_what_was_missed_is_handled_in_order_over_all_channels_and_pages(bus_address, send, stopped_before):
    stopped_before(NEWS, SPORTS)
    texts = numbers(3 * PAGE_SIZE)
    for start in range(0, len(texts), 3):
        send(NEWS, *texts[start : start + 2])
        send(SPORTS, texts[start + 2])
    send(SPORTS, "last")

    consuming = Consuming(bus_address, NEWS, SPORTS)

    assert consuming.run() == [*texts, "last"]
    assert consuming.resets == []


def test_what_is_published_while_the_missed_is_handled_follows_it(bus_address, send, stopped_before):
    stopped_before(NEWS)
    send(NEWS, "1", "2")
    consuming = Consuming(bus_address, NEWS, meanwhile={"1": lambda: send(NEWS, "3", "last")})
    assert consuming.run() == ["1", "2", "3", "last"]


def test_consumers_of_different_names_have_different_cursors(bus_address, send):
    Consuming(bus_address, NEWS, name="one").run(lambda: send(NEWS, "last"))
    Consuming(bus_address, NEWS, name="two").run(lambda: send(NEWS, "1", "last"))
    assert Consuming(bus_address, NEWS, name="one").run() == ["1", "last"]


def test_consumer_beside_another_of_its_name_warns(bus_address, send, caplog):
    second = Consuming(bus_address, NEWS)

    Consuming(bus_address, NEWS).run(lambda: second.run(lambda: send(NEWS, "last")))

    assert "Another process consumes as 'test' too" in caplog.text


# Channels without history


def test_message_without_an_id_is_handled_live_and_only_then(bus_address, send, publisher):
    def publish() -> None:
        send(PLAIN, "no history")
        publisher.publish(NEWS.name, b"published plainly")
        send(NEWS, "last")

    consuming = Consuming(bus_address, PLAIN, NEWS, meanwhile={"1": publish})
    assert consuming.run(lambda: send(NEWS, "1")) == ["1", "no history", "published plainly", "last"]

    send(PLAIN, "while away")
    assert Consuming(bus_address, PLAIN).run(lambda: send(PLAIN, "last")) == ["last"]


def test_message_that_is_no_message_is_dropped(bus_address, send, publisher, caplog):
    def publish() -> None:
        publisher.publish(NEWS.name, b"\xffRT1 garbage")
        send(NEWS, "last")

    consuming = Consuming(bus_address, NEWS, meanwhile={"1": publish})

    assert consuming.run(lambda: send(NEWS, "1")) == ["1", "last"]
    assert "A message on 'site:news' was dropped: an envelope ends before its data" in caplog.text


# What is missing


def test_burst_that_is_longer_than_the_history_is_handled_live(bus_address, send):
    burst = [*(f"message {number}" for number in range(300)), "last"]
    consuming = Consuming(bus_address, SHORT, meanwhile={"1": lambda: send(SHORT, *burst)})

    assert consuming.run(lambda: send(SHORT, "1")) == ["1", *burst]
    assert consuming.resets == []


def test_history_that_does_not_go_back_so_far_is_told_before_what_is_left(
    bus_address, send, stopped_before, caplog
):
    stopped_before(NEWS, SHORT)
    texts = numbers(300)
    for text in texts:
        send(SHORT, text)
    send(NEWS, "last")
    consuming = Consuming(bus_address, NEWS, SHORT)

    handled = consuming.run()

    assert 10 <= len(handled[:-1]) < 300
    assert handled == [*texts[-len(handled[:-1]) :], "last"]
    assert consuming.resets == [("site:short", "expired")]
    assert "Messages are missing on site:short (expired)" in caplog.text


def test_latest_values_that_were_missed_are_no_hole(bus_address, send, stopped_before, caplog):
    quote = Channel("site:quote", history=1, ttl=60, slow_client=SlowClient.LATEST)
    stopped_before(quote)
    for text in [*numbers(300), "last"]:
        send(quote, text)
    consuming = Consuming(bus_address, quote)

    assert consuming.run()[-1] == "last"
    assert (consuming.resets, caplog.text) == ([], "")


def test_cursor_moves_while_nothing_is_published_so_that_it_does_not_expire(
    bus_address, publisher, signalled, monkeypatch
):
    monkeypatch.setattr(module, "TICK_INTERVAL", 0.001)
    consuming = Consuming(bus_address, NEWS)
    stop = signalled(consuming.consumer)

    def stop_when_moved() -> None:
        clock = publisher.read_clock()
        wait_until(lambda: (saved := publisher.load_cursor("test")) and saved.id > clock.id, TIMEOUT)
        stop()

    watcher = threading.Thread(target=stop_when_moved)
    consuming.run(watcher.start)
    watcher.join(TIMEOUT)
    assert publisher.load_cursor("test").id > 0


# A bus that breaks


def test_bus_that_has_lost_its_memory_is_told_and_what_it_has_since_is_handled(
    bus_address, server, send, caplog
):
    def restart() -> None:
        server.restart()
        send(NEWS, "in its new life", "last")

    consuming = Consuming(bus_address, NEWS, PLAIN, meanwhile={"1": restart})

    assert consuming.run(lambda: send(NEWS, "1")) == ["1", "in its new life", "last"]
    assert consuming.resets == [("site:news", "restarted")]
    assert "Messages are missing on site:news (restarted)" in caplog.text


def test_bus_that_was_emptied_under_an_idle_consumer_is_told(bus_address, only_redis, monkeypatch):
    monkeypatch.setattr(module, "TICK_INTERVAL", 0.001)
    consuming = Consuming(bus_address, NEWS)
    consuming.meanwhile["restarted"] = consuming.consumer.stop

    consuming.run(lambda: only_redis.cli("flushall"))

    assert consuming.resets == [("site:news", "restarted")]


def test_nothing_is_lost_when_the_connection_breaks(bus_address, only_redis, send):
    def cut() -> None:
        only_redis.cli("client", "kill", "type", "pubsub")
        send(NEWS, "3", "last")

    consuming = Consuming(bus_address, NEWS, meanwhile={"1": cut})

    assert consuming.run(lambda: send(NEWS, "1", "2")) == ["1", "2", "3", "last"]
    assert consuming.resets == []


def test_nothing_is_lost_when_redis_is_killed_amid_a_thousand_messages(tmp_path: Path):
    with RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        address = BusAddress(server.url)
        with closing(Publisher(address, TIMEOUT)) as publisher:

            def publish(texts: Sequence[str]) -> None:
                publisher.send([Outgoing(Channel("news", 2000, 60), text.encode()) for text in texts])

            def kill() -> None:
                publish(texts[500:])
                server.kill()
                server.start()

            texts = [*numbers(1000), "last"]
            consuming = Consuming(address, Channel("news", 2000, 60), meanwhile={"250": kill})
            handled = consuming.run(lambda: publish(texts[:500]))

    assert handled == texts
    assert consuming.resets == []


def test_messages_that_are_too_many_for_the_bus_to_hold_are_read_from_the_history(bus_address, send):
    large = [str(number) + " " * 500_000 for number in range(80)]

    def publish() -> None:
        for text in large:
            send(NEWS, text)
        send(NEWS, "last")

    consuming = Consuming(bus_address, NEWS, meanwhile={"1": publish})

    assert consuming.run(lambda: send(NEWS, "1")) == ["1", *large, "last"]
    assert consuming.resets == []


@pytest.fixture
def started_when_missed(server) -> Iterator[None]:
    """Start the bus when a consumer has noticed that it is away."""

    class StartServer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "The bus is out of reach" in record.getMessage():
                module.logger.removeHandler(self)
                server.start()

    handler = StartServer()
    module.logger.addHandler(handler)
    yield
    module.logger.removeHandler(handler)


@pytest.mark.usefixtures("started_when_missed")
def test_bus_is_waited_for(bus_address, server, send):
    server.stop()
    assert Consuming(bus_address, NEWS).run(lambda: send(NEWS, "last")) == ["last"]


@pytest.fixture
def forgetful_bus(server) -> LocalBus:
    """A bus that can be made to forget who follows what."""
    if isinstance(server, RedisServer):
        pytest.skip("of the local bus")
    return server.bus


def test_subscription_that_has_died_in_silence_is_replaced(bus_address, forgetful_bus, send, monkeypatch):
    def forget() -> None:
        with forgetful_bus.turn:
            forgetful_bus.subscribers.clear()
        send(NEWS, "last")

    monkeypatch.setattr(module, "TICK_INTERVAL", 0.001)
    monkeypatch.setattr(module, "TICK_TIMEOUT", 0.1)
    consuming = Consuming(bus_address, NEWS, meanwhile={"1": forget})

    assert consuming.run(lambda: send(NEWS, "1")) == ["1", "last"]


def test_message_that_did_not_come_is_read_from_the_history(bus_address, forgetful_bus, send):
    def forget_for_a_moment() -> None:
        with forgetful_bus.turn:
            subscribers = forgetful_bus.subscribers.pop(NEWS.name.encode())
        send(NEWS, "2")
        with forgetful_bus.turn:
            forgetful_bus.subscribers[NEWS.name.encode()] = subscribers
        send(NEWS, "last")

    consuming = Consuming(bus_address, NEWS, meanwhile={"1": forget_for_a_moment})

    assert consuming.run(lambda: send(NEWS, "1")) == ["1", "2", "last"]


# Handlers that fail


def test_message_whose_handler_fails_is_given_to_it_again_before_the_next(bus_address, send, caplog):
    tries: list[str] = []

    def handle(message: Message) -> None:
        tries.append(message.data.decode())
        if len(tries) < 3:
            raise RuntimeError("not yet")
        if message.data == b"last":
            consumer.stop()

    consumer = Consumer(bus_address, "test", [Receiver(NEWS, handle)])
    consumer.run(lambda: send(NEWS, "1", "last"))

    assert tries == ["1", "1", "1", "last"]
    assert "on 'site:news' failed and is tried again in 0.001 s" in caplog.text
    assert "RuntimeError: not yet" in caplog.text


def test_poisoned_message_is_given_up_and_stops_neither_the_others_nor_other_receivers(
    bus_address, send, caplog
):
    tries: list[str] = []

    def fail(message: Message) -> None:
        tries.append(message.data.decode())
        if message.data == b"poison":
            raise RuntimeError("never")

    consuming = Consuming(bus_address, NEWS)
    receivers = [Receiver(NEWS, fail, retries=2), Receiver(NEWS, consuming.handle)]
    consuming.consumer = Consumer(bus_address, "test", receivers)

    assert consuming.run(lambda: send(NEWS, "1", "poison", "last")) == ["1", "poison", "last"]
    assert tries == ["1", "poison", "poison", "poison", "last"]
    assert caplog.text.count("is given up") == 1


@pytest.mark.usefixtures("started_when_missed")
def test_handler_that_needs_the_bus_is_tried_again_when_that_is_back(bus_address, server, send):
    """A bus that is away uses up one try, however long it is."""
    tries: list[str] = []

    def handle(message: Message) -> None:
        tries.append(message.data.decode())
        if len(tries) == 1:
            server.stop()
            send(SPORTS, "answer")
        consumer.stop()

    consumer = Consumer(bus_address, "test", [Receiver(NEWS, handle, retries=1)])
    consumer.run(lambda: send(NEWS, "question"))

    assert tries == ["question", "question"]


def test_hook_that_fails_is_tried_again(bus_address, send, stopped_before):
    stopped_before(SHORT)
    for text in [*numbers(300), "last"]:
        send(SHORT, text)
    consuming = Consuming(bus_address, SHORT)
    tries: list[str] = []

    def note_reset(channel: str, reason: str) -> None:
        tries.append(reason)
        if len(tries) == 1:
            raise RuntimeError("not yet")

    consuming.consumer = Consumer(bus_address, "test", [Receiver(SHORT, consuming.handle, note_reset)])

    assert consuming.run()[-1] == "last"
    assert tries == ["expired", "expired"]


# Stopping


def test_consumer_stops_behind_the_message_that_it_handles_with_its_cursor_saved(
    bus_address, send, publisher
):
    ids: list[str | None] = []

    consuming = Consuming(bus_address, NEWS)
    assert consuming.run(lambda: ids.extend(send(NEWS, "1", "last", "2"))) == ["1", "last"]

    assert publisher.load_cursor("test").cursor == ids[1]


def test_consumer_that_waits_for_messages_stops_at_once(bus_address, signalled):
    consuming = Consuming(bus_address, NEWS)
    stopping = threading.Thread(target=signalled(consuming.consumer))
    consuming.run(stopping.start)
    stopping.join(TIMEOUT)


def test_consumer_that_waits_for_the_bus_stops_at_once(bus_address, server, signalled):
    server.stop()
    consuming = Consuming(bus_address, NEWS)
    stopping = threading.Thread(target=signalled(consuming.consumer))
    stopping.start()
    consuming.run()
    stopping.join(TIMEOUT)
    server.start()


def test_message_that_waits_to_be_tried_again_is_left_for_the_next_start(bus_address, send, monkeypatch):
    def handle(message: Message) -> None:
        consumer.stop()
        raise RuntimeError("not yet")

    monkeypatch.setattr(module, "FIRST_RETRY", math.inf)
    consumer = Consumer(bus_address, "test", [Receiver(NEWS, handle, retries=math.inf)])
    consumer.run(lambda: send(NEWS, "1"))

    assert Consuming(bus_address, NEWS).run(lambda: send(NEWS, "last")) == ["1", "last"]


# Once


def test_once_handles_what_there_is(bus_address, send, stopped_before):
    stopped_before(NEWS)
    send(NEWS, "1", "2")

    first, second = Consuming(bus_address, NEWS), Consuming(bus_address, NEWS)
    first.consumer.run_once()
    second.consumer.run_once()

    assert (first.handled, second.handled) == (["1", "2"], [])


def test_once_without_a_bus_fails(bus_address, server):
    server.stop()
    with pytest.raises(BusUnavailable):
        Consuming(bus_address, NEWS).consumer.run_once()
    server.start()
