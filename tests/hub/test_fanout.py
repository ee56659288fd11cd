"""How messages reach many connections; see also `test_fanout_model.py`."""

from __future__ import annotations

from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.message import Message
from gunicorn_realtime.hub import audience as audience_module
from gunicorn_realtime.hub import fanout
from gunicorn_realtime.hub.audience import MAX_WRITE_SIZE
from gunicorn_realtime.hub.fanout import Fanout
from gunicorn_realtime.hub.feed import OVERHEAD, Feed
from gunicorn_realtime.hub.process import LINGER
from tests.hub.conftest import LineEngine, handover

LARGE = 16 * 1024 * 1024  # bytes; a buffer that is never full


def test_messages_of_one_turn_arrive_in_one_write_in_the_order_of_their_arrival(hub, make_client):
    engine = LineEngine()
    both, one = make_client(), make_client()
    hub.give(both, handover("a", "b"), engine)
    hub.give(one, handover("b"), engine)

    for channel, data in [("a", b"1"), ("b", b"2"), ("a", b"3"), ("b", b"4")]:
        hub.bus.publish(channel, data)
    hub.turn()

    assert both.sock.recv(100) == b"1\n2\n3\n4\n"
    assert one.sock.recv(100) == b"2\n4\n"


def test_message_is_encoded_once_per_encoding_whatever_the_audiences(hub, make_client):
    engine, same, other = LineEngine(), LineEngine(), LineEngine()
    other.encoding = "other"
    for audience in (["a"], ["a", "b"], ["b", "a"], ["a", "c"]):
        for each in (engine, same, other):
            for _ in range(3):
                hub.give(make_client(), handover(*audience), each)

    hub.bus.publish("a", b"hello")
    hub.settle()

    assert engine.encoded + same.encoded == [b"hello"]
    assert other.encoded == [b"hello"]


def test_batch_is_cut_at_the_largest_write_and_nothing_is_lost(hub, make_client):
    client = make_client(buffer_size=LARGE)
    connection = hub.give(client, handover("a"), LineEngine())
    lines = [b"%d " % number + b"x" * 60_000 for number in range(10)]
    for line in lines:
        hub.bus.publish("a", line)

    data, position = connection.audience.batch(0)
    assert MAX_WRITE_SIZE - 60_003 < len(data) <= MAX_WRITE_SIZE
    assert data == b"".join(line + b"\n" for line in lines[:position])

    hub.turn_until(lambda: client.read().count(b"\n") == 10)
    assert client.received == b"".join(line + b"\n" for line in lines)


def test_message_larger_than_a_write_goes_alone(hub, make_client):
    client = make_client(buffer_size=LARGE)
    connection = hub.give(client, handover("a"), LineEngine())
    for data in (b"1", b"x" * MAX_WRITE_SIZE, b"3"):
        hub.bus.publish("a", data)

    assert [connection.audience.batch(position)[1] for position in (0, 1, 2)] == [1, 2, 3]


def test_channel_that_is_named_twice_is_delivered_once(hub, client):
    connection = hub.give(client, handover("a", "b", "a"), LineEngine())

    hub.bus.publish("a", b"1")
    hub.settle()

    assert client.read() == b"1\n"
    hub.close(connection, "")
    assert connection.messages == 1


def test_last_of_many_gets_each_message_once(hub, make_client):
    engine = LineEngine()
    clients = [make_client() for _ in range(8)]
    connections = [hub.give(client, handover("a"), engine) for client in clients]
    hub.bus.publish("a", b"1")
    hub.settle()
    for connection in connections[1:]:
        hub.close(connection, "")

    for data in (b"2", b"3"):
        hub.bus.publish("a", data)
    hub.settle()

    assert clients[0].read() == b"1\n2\n3\n"


def test_connection_that_follows_nothing_lives_and_leaves(hub, make_client):
    client = make_client()
    connection = hub.give(client, handover(head=b"head"), LineEngine())
    hub.give(make_client(), handover("a"), LineEngine())
    hub.bus.publish("a", b"1")
    hub.settle()
    hub._tick(1, 0)

    hub.close(connection, "")

    assert client.read() == b"head"
    assert (connection.messages, connection.bytes) == (0, 4)


def test_idle_audience_holds_no_message(hub, client):
    connection = hub.give(client, handover("a"), LineEngine())

    hub.bus.publish("a", b"x" * 1000)
    hub.settle()

    assert connection.audience.batch(connection.audience.last) == (b"", 1)
    assert not hub.bus.feeds["a"].entries


def test_place_where_a_broadcast_begins_goes_round(hub, make_client):
    engine = LineEngine()
    connections = [hub.give(make_client(), handover("a"), engine) for _ in range(9)]
    audience = connections[0].audience
    starts = []
    for _ in range(4):
        hub.bus.publish("a", b"1")
        starts.append(audience.cursor)
        hub.settle()

    assert starts == [3, 6, 0, 3]


def test_places_that_went_between_two_broadcasts_double_nothing(hub, make_client):
    clients = [make_client() for _ in range(9)]
    engine = LineEngine()
    connections = [hub.give(client, handover("a"), engine) for client in clients]
    for _ in range(2):  # the next broadcast would begin beyond the middle
        hub.bus.publish("a", b"1")
        hub.settle()
    for connection in connections[:6]:
        hub.close(connection, "")

    hub.bus.publish("a", b"2")
    hub.settle()

    assert [client.read() for client in clients[6:]] == [b"1\n1\n2\n"] * 3


def endless(patch, *, deliveries: int = 1) -> None:
    """Let time be up after so many deliveries."""
    patch.setattr(fanout, "SLICE", -1.0)
    for module in (audience_module, fanout):
        patch.setattr(module, "DELIVERIES_BETWEEN_CLOCKS", deliveries)


def test_audience_that_is_never_done_does_not_keep_the_others_waiting(hub, make_client, monkeypatch):
    endless(monkeypatch)
    engine = LineEngine()
    for _ in range(10):
        hub.give(make_client(), handover("busy"), engine)
    client = make_client()
    hub.give(client, handover("quiet"), engine)

    hub.bus.publish("busy", b"0")
    hub.bus.publish("quiet", b"hello")
    for number in range(3):  # it gets more than a turn can serve
        hub.bus.publish("busy", b"%d" % number)
        hub.turn()

    assert hub.bus.fanout.queue
    assert client.read() == b"hello\n"


def test_who_joins_a_broadcast_that_does_not_end_is_served_with_the_others(hub, make_client, monkeypatch):
    endless(monkeypatch)
    engine = LineEngine()
    clients = [make_client() for _ in range(5)]
    for client in clients:
        hub.give(client, handover("a"), engine)
    hub.bus.publish("a", b"before")
    hub.turn()
    late = make_client()
    connection = hub.give(late, handover("a"), engine)
    assert connection.has_place and connection.audience.runs is not None

    for _ in range(12):
        hub.bus.publish("a", b"1")
        hub.turn()

    assert connection.audience.runs is not None
    assert late.read().count(b"1\n") >= 5
    hub.settle()
    assert late.read() == b"1\n" * 12
    assert connection.index >= 0


def test_hub_is_behind_until_all_have_what_there_is(hub, client):
    hub.give(client, handover("a"), LineEngine())
    assert not hub.bus.fanout.is_behind

    while not hub.bus.fanout.is_behind:
        hub.bus.publish("a", b"x" * 100_000)
    # What everybody lacks is never what a feed drops.
    assert hub.bus.feeds["a"].floor == 0

    hub.settle()
    assert not hub.bus.fanout.is_behind


def test_messages_without_data_put_a_hub_behind_too():
    fanout, feed = Fanout(400 * OVERHEAD), Feed(Channel("a"), 0)
    for _ in range(101):
        feed.turn = fanout.turn  # not the first that has come
        fanout.append(feed, Message("a", b""))

    assert fanout.is_behind


def test_what_a_lagging_client_lacks_is_kept_and_forgotten_when_it_has_it(hub, make_client):
    engine = LineEngine()
    slow, quick = make_client(), make_client(buffer_size=LARGE)
    connection = hub.give(slow, handover("a"), engine)
    hub.give(quick, handover("a"), engine)
    lines = [b"%d " % number + b"x" * 3000 for number in range(20)]
    for line in lines:
        hub.bus.publish("a", line)
        hub.settle()

    assert connection in hub.lagging
    assert quick.read() == b"".join(line + b"\n" for line in lines)
    hub._tick(1, 0)
    assert [message.data for _, message in hub.bus.feeds["a"].after(0)][-1] == lines[-1]

    hub.turn_until(lambda: slow.read().count(b"\n") == 20)
    hub.turn_until(lambda: not hub.lagging)
    hub._tick(2, 0)
    assert slow.received == quick.received
    assert not hub.bus.feeds["a"].entries
    hub.bus.publish("a", b"last")
    hub.settle()
    assert slow.read().endswith(b"\nlast\n")


def test_channel_stays_followed_when_those_go_who_sat_with_its_former_listeners(hub, make_client):
    engine = LineEngine()
    *few, last = [hub.give(make_client(), handover("a", "b"), engine) for _ in range(audience_module.FEW + 1)]
    for connection in few:
        hub.close(connection, "")
    hub._tick(1, 0)
    client = make_client()
    hub.give(client, handover("a"), engine)

    hub.close(last, "")
    hub._tick(2, 0)
    hub._tick(3, LINGER + 1)
    hub.bus.publish("a", b"hello")
    hub.settle()

    assert client.read() == b"hello\n"
    assert list(hub.bus.feeds) == ["a"]


def test_first_message_for_a_few_is_sent_at_once_and_what_comes_behind_it_is_joined(hub, make_client):
    engine = LineEngine()
    client = make_client()
    connection = hub.give(client, handover("a"), engine)

    hub.bus.publish("a", b"1", is_first=True)
    assert client.read() == b"1\n"
    hub.bus.publish("a", b"2")
    hub.bus.publish("a", b"3")
    assert connection.audience.batch(connection.audience.runs[0][1])[0] == b"2\n3\n"
    hub.settle()

    assert client.read() == b"1\n2\n3\n"
    assert not hub.bus.feeds["a"].entries


def test_message_is_not_sent_at_once_while_somebody_is_behind(hub, make_client):
    engine = LineEngine()
    slow, quick = make_client(), make_client(buffer_size=LARGE)
    connection = hub.give(slow, handover("a"), engine)
    hub.give(quick, handover("a"), engine)
    lines = [b"%d " % number + b"x" * 3000 for number in range(10)]
    for line in lines:
        hub.bus.publish("a", line, is_first=True)
        hub.settle()

    assert connection in hub.lagging
    hub.turn_until(lambda: slow.read().count(b"\n") == 10)
    assert slow.received == b"".join(line + b"\n" for line in lines)


def test_client_that_is_gone_when_it_is_sent_to_at_once_is_closed(hub, make_client):
    engine = LineEngine()
    client, gone = make_client(), make_client()
    hub.give(client, handover("a"), engine)
    connection = hub.give(gone, handover("a"), engine)
    gone.close()

    hub.bus.publish("a", b"1", is_first=True)  # the kernel may still take this one
    hub.bus.publish("a", b"2", is_first=True)
    hub.settle()

    assert connection.fd < 0
    assert client.read() == b"1\n2\n"
