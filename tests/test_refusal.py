from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.refusal import RETRY, refusal
from tests.protocols.test_sse import EventStream

HEAD = b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nContent-Type: text/plain\r\nSet-Cookie: a=b\r\n"


class Wire:
    """What `http.client` reads from: the bytes of one response, then the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)


def parse(data: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    response = http.client.HTTPResponse(Wire(data))  # type: ignore[arg-type]
    response.begin()
    return response, response.read()


def test_event_source_gets_a_stream_that_ends_at_once_since_it_never_returns_after_an_error():
    response, body = parse(refusal("sse", {}).encode(HEAD))

    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    stream = EventStream(body)
    assert not stream.events
    assert stream.reconnection_time is not None
    assert RETRY[0] * 1000 <= stream.reconnection_time <= RETRY[1] * 1000


@pytest.mark.parametrize("engine", ["poll", "websocket"])
def test_all_others_get_503_and_when_to_come_back(engine):
    response, body = parse(refusal(engine, {}).encode(HEAD))

    assert response.status == 503
    assert RETRY[0] <= int(response.headers["Retry-After"]) <= RETRY[1]
    assert body == b"This server takes no more connections now; try again later.\n"


@pytest.mark.parametrize("engine", ["sse", "poll"])
def test_refusal_is_whole_and_ends_the_connection(engine):
    response, body = parse(refusal(engine, {}).encode(HEAD))

    assert response.headers["Connection"] == "close"
    assert response.headers["Cache-Control"] == "no-store"
    assert int(response.headers["Content-Length"]) == len(body)
    assert response.headers["Transfer-Encoding"] is None


@pytest.mark.parametrize("engine", ["sse", "poll"])
def test_applications_headers_go_along_but_not_those_of_its_body(engine):
    head = HEAD + b"Content-Encoding: gzip\r\ncontent-length: 5\r\nAccess-Control-Allow-Origin: *\r\n"

    response, _ = parse(refusal(engine, {}).encode(head))

    assert response.headers["Set-Cookie"] == "a=b"
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.headers["Content-Encoding"] is None
    for name in ("Content-Type", "Content-Length", "Server"):
        assert len(response.headers.get_all(name)) == 1


@given(st.tuples(st.floats(0, 3600), st.floats(0, 3600)).map(sorted))
def test_sites_own_retry_is_kept_to(retry):
    stream = EventStream(refusal("sse", {"retry": retry}).body)
    headers = dict(refusal("poll", {"retry": retry}).headers)

    assert stream.reconnection_time is not None
    assert round(retry[0] * 1000) <= stream.reconnection_time <= round(retry[1] * 1000)
    assert max(1, round(retry[0])) <= int(headers["Retry-After"]) <= max(1, round(retry[1]))


def test_clients_that_are_refused_together_do_not_return_together():
    assert len({refusal("sse", {}).body for _ in range(100)}) > 50
