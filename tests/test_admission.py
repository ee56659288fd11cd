"""Which requests ask for a stream, and in which order they are let in; see also `e2e/test_admission.py`."""

from __future__ import annotations

import pytest

from gunicorn_realtime.admission import Admission, engine_asked_for, may_refuse


@pytest.mark.parametrize(
    ("fields", "engine"),
    [
        (b"Accept: text/event-stream", "sse"),
        (b"accept:text/html, TEXT/Event-Stream;q=0.9", "sse"),
        (b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket", "websocket"),
        (b"Upgrade: h2c, WebSocket", "websocket"),
        (b"Accept: text/html", None),
        (b"X-Accept: text/event-stream", None),
        (b"Accept: */*\r\nReferer: https://x/?accept: text/event-stream", None),
        (b"Upgrade: websocket2", None),
    ],
)
def test_request_says_which_engine_it_wants(fields, engine):
    assert engine_asked_for(b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n\r\n") == engine


def test_eventsource_of_another_origin_is_not_refused():
    head = b"GET / HTTP/1.1\r\nOrigin: https://elsewhere.example\r\n\r\n"

    assert not may_refuse("sse", head)
    assert may_refuse("sse", b"GET / HTTP/1.1\r\nReferer: https://x/\r\n\r\n")
    assert may_refuse("websocket", head)


def test_those_who_wait_come_in_in_their_order():
    admission = Admission(at_once=2, most_waiting=2)
    assert [admission.enter(name) for name in "abcd"] == [True, True, False, False]
    assert admission.is_full()

    assert [admission.leave(name) for name in "bacd"] == ["c", "d", None, None]
    assert not admission.is_full()
    assert admission.enter("e")


def test_who_never_entered_lets_nobody_in():
    admission = Admission(at_once=1, most_waiting=1)
    admission.enter("a")
    admission.enter("b")

    assert admission.leave("a page") is None
