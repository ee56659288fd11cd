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


@pytest.fixture
def started() -> list[str]:
    return []


def test_those_who_wait_come_in_in_their_order(started):
    admission = Admission(started.append, at_once=2, most_waiting=2)
    for name in "abcd":
        admission.enter(name)
    assert started == ["a", "b"]
    assert admission.is_full()

    admission.leave("b")
    assert started == ["a", "b", "c"]
    assert not admission.is_full()
    admission.leave("a")
    assert started == ["a", "b", "c", "d"]


def test_who_never_entered_lets_nobody_in(started):
    admission = Admission(started.append, at_once=1, most_waiting=1)
    admission.enter("a")
    admission.enter("b")

    admission.leave("a page")

    assert started == ["a"]


def test_nobody_waits_any_more_when_the_worker_stops(started):
    admission = Admission(started.append, at_once=1, most_waiting=5)
    for name in "abc":
        admission.enter(name)

    admission.open_wide()
    admission.enter("d")

    assert started == ["a", "b", "c", "d"]
