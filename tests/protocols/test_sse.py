from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.protocols import sse


@dataclass
class ParsedEvent:
    type: str
    data: str
    last_event_id: str


class EventStream:
    """What a client makes of a stream: WHATWG HTML, sections 9.2.5 and 9.2.6, word by word."""

    def __init__(self, stream: bytes) -> None:
        self.events: list[ParsedEvent] = []
        self.reconnection_time: int | None = None
        self.last_event_id = ""
        self._data = ""
        self._event_type = ""
        text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
        *lines, incomplete = re.split("\r\n|\r|\n", text)
        assert incomplete == "", "the stream ends within a line"
        for line in lines:
            self._process_line(line)

    def _process_line(self, line: str) -> None:
        if not line:
            self._dispatch()
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            self._process_field(field, value.removeprefix(" "))

    def _process_field(self, field: str, value: str) -> None:
        if field == "event":
            self._event_type = value
        elif field == "data":
            self._data += value + "\n"
        elif field == "id" and "\0" not in value:
            self.last_event_id = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            self.reconnection_time = int(value)

    def _dispatch(self) -> None:
        if self._data:
            data = self._data.removesuffix("\n")
            self.events.append(ParsedEvent(self._event_type or "message", data, self.last_event_id))
        self._data = self._event_type = ""


line_ends = st.sampled_from(
    ["\r", "\n", "\r\n", "\n\n", "data: x", "id: x", "event: x", "retry: 1", ":", " "]
)
texts = st.lists(st.one_of(line_ends, st.text(max_size=10)), max_size=8).map("".join)
one_line_texts = texts.map(lambda text: text.replace("\r", "").replace("\n", ""))


@given(texts, st.none() | one_line_texts, st.none() | one_line_texts.map(lambda text: text.replace("\0", "")))
def test_client_gets_one_event_with_the_lines_that_were_sent(data, event, id):
    stream = EventStream(sse.encode_event(data.encode(), event=event, id=id))

    lines = "\n".join(re.split("\r\n|\r|\n", data))
    assert stream.events == [ParsedEvent(event or "message", lines, id or "")]
    assert stream.reconnection_time is None


@given(st.lists(texts, max_size=4))
def test_events_follow_each_other(messages):
    stream = EventStream(b"".join(sse.encode_event(data.encode()) for data in messages))
    assert len(stream.events) == len(messages)


@given(st.binary())
def test_data_that_is_not_utf8_is_still_one_event_of_utf8(data):
    encoded = sse.encode_event(data)
    encoded.decode()
    assert len(EventStream(encoded).events) == 1


@pytest.mark.parametrize("line_end", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("name", ["event", "id"])
def test_event_and_id_cannot_begin_another_field(name, line_end):
    with pytest.raises(ValueError, match=f"an SSE {name} must be one line"):
        sse.encode_event(b"", **{name: f"x{line_end}data: forged"})


@pytest.mark.parametrize("line_end", [b"\r", b"\n", b"\r\n"])
def test_data_cannot_begin_another_field(line_end):
    encoded = sse.encode_event(b"x" + line_end + b"id: forged")
    assert encoded == b"data: x\ndata: id: forged\n\n"


def test_id_with_nul_is_refused_since_clients_ignore_it():
    with pytest.raises(ValueError, match="must not contain NUL"):
        sse.encode_event(b"", id="1\0")


def test_empty_data_is_an_event_too():
    assert EventStream(sse.encode_event(b"")).events == [ParsedEvent("message", "", "")]


def test_retry_is_in_whole_milliseconds_and_no_event():
    stream = EventStream(sse.encode_retry(2.5004))
    assert stream.reconnection_time == 2500
    assert not stream.events


def test_comment_is_no_event_and_ends_none():
    stream = EventStream(sse.COMMENT + sse.encode_event(b"x") + sse.COMMENT)
    assert [event.data for event in stream.events] == ["x"]
