from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.bus.message import Message, Stamp
from gunicorn_realtime.hub.feed import OVERHEAD, Feed, cost

messages = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2000)), max_size=30)


def keys(feed: Feed, position: int) -> list[int]:
    return [key for key, _ in feed.after(position)]


@given(messages, st.integers(0, 160), st.integers(1000, 20_000))
def test_feed_gives_what_is_newer_than_a_position_unless_it_has_been_dropped(steps, position, max_size):
    feed = Feed(Channel("news"), 0)
    published = []
    key = 0
    for step, size in steps:
        key += step  # other feeds take keys too
        published.append(key)
        feed.append(key, Message("news", b"x" * size), max_size)

    assert keys(feed, position) == [key for key in published if key > max(position, feed.floor)]
    assert feed.last == (published[-1] if published else 0)
    assert feed.size == sum(cost(message) for _, message in feed.entries or deque())


@given(messages, st.integers(1000, 20_000))
def test_feed_drops_the_oldest_beyond_its_size_but_never_the_newest(steps, max_size):
    feed = Feed(Channel("news"), 0)
    for key, (_, size) in enumerate(steps, start=1):
        feed.append(key, Message("news", b"x" * size), max_size)

        assert keys(feed, 0)[-1] == key
        assert feed.size <= max_size or len(keys(feed, 0)) == 1
        assert feed.floor == keys(feed, 0)[0] - 1


def test_messages_without_data_fill_a_feed_too():
    feed = Feed(Channel("news"), 0)
    for key in range(1, 1001):
        feed.append(key, Message("news", b""), 10 * OVERHEAD)

    assert keys(feed, 0) == list(range(991, 1001))


@given(messages, st.integers(0, 160))
def test_what_everybody_has_is_forgotten(steps, position):
    feed = Feed(Channel("news"), 0)
    for key, (_, size) in enumerate(steps, start=1):
        feed.append(key, Message("news", b"x" * size), 1_000_000)

    feed.trim(position)

    assert keys(feed, 0) == list(range(position + 1, len(steps) + 1))
    assert feed.floor == min(position, len(steps))


def test_new_feed_has_nothing_and_lacks_nothing():
    feed = Feed(Channel("news"), 7)

    assert (feed.last, feed.floor, feed.after(0)) == (7, 7, [])


def stamped(id_: int) -> Message:
    return Message("news", b"x", stamp=Stamp("epoch1", id_, id_ - 1))


def test_history_is_kept_when_everybody_has_it():
    feed = Feed(Channel("news", history=3, ttl=60.0), 0)
    for id_ in range(1, 11):
        feed.append(id_, stamped(id_), 1_000_000)

    assert not feed.trim(5)  # somebody lags
    assert keys(feed, 0) == [6, 7, 8, 9, 10]
    assert feed.trim(None)
    assert keys(feed, 0) == [8, 9, 10]
    assert feed.floor == 7


def test_message_without_an_id_is_not_kept():
    feed = Feed(Channel("news", history=10, ttl=60.0), 0)
    feed.append(1, stamped(1), 1_000_000)
    feed.append(2, Message("news", b"plain"), 1_000_000)
    feed.append(3, stamped(3), 1_000_000)

    feed.trim(1)
    assert keys(feed, 0) == [1, 2, 3]
    feed.trim(None)
    assert keys(feed, 0) == [1, 3]


def test_message_without_an_id_is_only_for_who_was_there_when_it_came():
    feed = Feed(Channel("news", history=10, ttl=60.0), 0)
    for key in (1, 3, 5):
        feed.append(key, stamped(key), 1_000_000)
        feed.append(key + 1, Message("news", b"plain"), 1_000_000)

    assert sorted(key for key, _ in feed.missed(1, came=4)) == [3, 5, 6]


def test_hole_stays_one_when_its_notice_is_gone():
    feed = Feed(Channel("news", history=2, ttl=60.0), 0)
    feed.append(1, stamped(1), 1_000_000)
    feed.append(10, Message("news", b"", reset="expired"), 1_000_000)
    for key in (11, 12, 13):
        feed.append(key, stamped(key), 1_000_000)
        feed.trim(None)

        assert feed.floor >= 10
        assert keys(feed, 0)[0] > 10


def test_current_value_stays_while_somebody_needs_what_came_behind_it_without_an_id():
    feed = Feed(Channel("quote", 1, 60.0, SlowClient.LATEST), 0)
    feed.append(1, stamped(1), 1_000_000)
    feed.append(2, Message("quote", b"plain"), 1_000_000)

    for needed in (1, 7, None):  # 7: of another feed
        feed.trim(needed)
        assert feed.value is not None


def test_feed_of_latest_values_gives_the_newest_only():
    feed = Feed(Channel("quote", 1, 60.0, SlowClient.LATEST), 0)
    for id_ in (1, 2, 3):
        feed.append(id_, stamped(id_), 1_000_000)

    assert keys(feed, 0) == keys(feed, 2) == [3]
    assert keys(feed, 3) == []
