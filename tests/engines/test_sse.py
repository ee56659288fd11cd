"""What the engine adds to the format, which has its own tests in `tests/protocols/test_sse.py`."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.bus.message import STAMP, Message, Stamp
from gunicorn_realtime.engines.base import make_engine
from gunicorn_realtime.engines.sse import SSE
from tests.protocols.test_sse import EventStream, ParsedEvent

stamps = st.from_regex(STAMP, fullmatch=True).map(
    lambda stamp: Stamp(stamp.split()[0].decode(), *map(int, stamp.split()[1:]))
)
names = st.text() | st.sampled_from(
    ["goal", "", "two\nlines", "two\rlines", "a\r\ndata: forged", "\0", "\ud800"]
)
messages = st.builds(Message, st.just("news"), st.binary(), st.none() | names, st.none() | stamps)
one_line_names = names.filter(lambda name: "\n" not in name and "\r" not in name)


@given(messages, st.none() | one_line_names)
def test_every_message_is_one_event_whatever_was_published(message, default):
    engine = SSE({"event": default})

    stream = EventStream(engine.encode(message))

    [event] = stream.events
    lines = re.split("\r\n|\r|\n", message.data.decode("utf-8", "replace"))
    assert event.data.encode() == "\n".join(lines).encode()
    assert event.last_event_id == (message.stamp.cursor if message.stamp else "")


@given(messages)
def test_raw_message_is_itself(message):
    assert SSE({"raw": True}).encode(message) == message.data


def test_event_has_the_publishers_name_or_the_views_or_none():
    named, plain = Message("news", b"1:0", "goal"), Message("news", b"1:0")

    def name(message: Message, **options: str) -> str:
        return EventStream(SSE(options).encode(message)).events[0].type

    assert name(named, event="update") == "goal"
    assert name(plain, event="update") == "update"
    assert name(plain) == "message"


@pytest.mark.parametrize("event", ["a\nb", "a\rb", "a\r\ndata: forged"])
def test_name_of_several_lines_from_a_strange_publisher_gives_way(event):
    message = Message("news", b"hello", event, Stamp("e", 5, 4))

    stream = EventStream(SSE({"event": "update"}).encode(message))

    assert stream.events == [ParsedEvent("update", "hello", "e-5")]


def test_engines_that_encode_alike_share_what_they_encode():
    engines = [make_engine("sse", options) for options in ({}, {"heartbeat": 5}, {"retry": [1, 2]})]
    others = [make_engine("sse", options) for options in ({"raw": True}, {"event": "update"})]

    assert len({engine.encoding for engine in engines}) == 1
    assert len({engine.encoding for engine in [*engines, *others]}) == 3


def test_heartbeat_is_a_comment_and_goodbye_says_when_to_return():
    engine = SSE({"retry": [2, 3]})

    stream = EventStream(engine.beat() + engine.goodbye())

    assert not stream.events
    assert stream.reconnection_time is not None
    assert 2000 <= stream.reconnection_time <= 3000
