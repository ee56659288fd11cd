"""The clients of the end-to-end tests must not lie: the examples of WHATWG HTML, section 9.2.6, and its traps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.clients import Event, ResponseReader, SSEParser


def parse(*reads: bytes) -> list[Event]:
    parser = SSEParser()
    return [event for read in reads for event in parser.feed(read)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(
            b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event("message", "YHOO\n+2\n10")], id="data-on-three-lines"
        ),
        pytest.param(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [Event("message", "first event", "1"), Event("message", "second event"), Event("message", " third event")],
            id="comment-and-ids",
        ),
        pytest.param(
            b"data\n\ndata\ndata\n\ndata:", [Event("message", ""), Event("message", "\n")], id="empty-data-and-unfinished"
        ),
        pytest.param(b"data:test\n\ndata: test\n\n", [Event("message", "test")] * 2, id="one-space-is-removed"),
        pytest.param(b"event: add\ndata: 1\n\ndata: 2\n\n", [Event("add", "1"), Event("message", "2")], id="event-type"),
        pytest.param(b"event: add\n\ndata: 1\n\n", [Event("message", "1")], id="block-without-data"),
        pytest.param(b"id: 7\ndata: 1\n\ndata: 2\n\n", [Event("message", "1", "7"), Event("message", "2", "7")], id="id-stays"),
        pytest.param(b"id: 7\0\ndata: 1\n\n", [Event("message", "1")], id="id-with-null"),
        pytest.param(b"retry: 1500\ndata: 1\n\n", [Event("message", "1", retry=1500)], id="retry"),
        pytest.param(b"retry: 1.5\ndata: 1\n\n", [Event("message", "1")], id="retry-is-digits-only"),
        pytest.param(b"data: 1\r\rdata: 2\r\n\r\ndata: 3\r\n\n", [Event("message", c) for c in "123"], id="line-ends"),
        pytest.param(b"\xef\xbb\xbfdata: 1\n\n", [Event("message", "1")], id="byte-order-mark"),
        pytest.param("data: Łódź \u2028\n\n".encode(), [Event("message", "Łódź \u2028")], id="utf-8"),
    ],
)  # fmt: skip
def test_parser_dispatches_what_an_eventsource_would(stream, events):
    assert parse(stream) == events


def test_event_ends_with_the_carriage_return_without_waiting_for_a_line_feed():
    assert parse(b"data: 1\r\r") == [Event("message", "1")]


def test_retry_and_comments_are_kept_without_an_event():
    parser = SSEParser()

    assert parser.feed(b": hello\nretry: 250\n\n:\n") == []

    assert parser.retry == 250
    assert parser.comments == ["hello", ""]


LINES = st.lists(st.sampled_from(["data: ä", "data", "id: 1", "event: x", ":", "retry: 5", "", "", "\ufeff"]))


@given(LINES, st.sampled_from(["\n", "\r", "\r\n"]), st.data())
def test_any_split_of_the_stream_gives_the_same_events(lines, line_end, draw):
    stream = "".join(line + line_end for line in lines).encode()
    cut = draw.draw(st.integers(0, len(stream)))

    assert parse(stream[:cut], stream[cut:]) == parse(*(bytes([byte]) for byte in stream)) == parse(stream)


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n8;x=y\r\n\r\nworld!\r\n0\r\n\r\n"
)


@given(st.integers(0, len(CHUNKED)))
def test_any_split_of_a_chunked_response_gives_the_same_body(cut):
    response = ResponseReader()

    body = response.feed(CHUNKED[:cut]) + response.feed(CHUNKED[cut:])

    assert (response.status, body, response.complete) == (200, b"hello\r\nworld!", True)


@pytest.mark.parametrize(
    ("stream", "body", "complete"),
    [
        pytest.param(CHUNKED[:-5], b"hello\r\nworld!", False, id="chunked-and-cut"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi", True, id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", b"hi", False, id="length-and-cut"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\nhi", b"hi", False, id="until-the-connection-closes"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", b"", True, id="no-content"),
    ],
)
def test_response_is_complete_as_its_framing_says(stream, body, complete):
    response = ResponseReader()

    assert response.feed(stream) == body
    assert response.complete is complete
