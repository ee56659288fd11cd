"""How an answer is framed; what becomes of its connection is in `tests/hub/test_process.py`."""

from __future__ import annotations

import http.client

from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.bus.message import Message
from gunicorn_realtime.engines.poll import Poll
from tests.test_refusal import parse

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def read(data: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    return parse(HEAD + data)


@given(st.binary(), st.none() | st.text())
def test_answer_is_the_message_and_leaves_the_connection_usable(data, event):
    response, body = read(Poll({}).encode(Message("chat", data, event)))

    assert (response.status, body) == (200, data)
    assert int(response.headers["Content-Length"]) == len(data)
    assert not response.will_close


def test_goodbye_is_an_empty_answer():
    response, body = read(Poll({}).goodbye())

    assert (response.status, body) == (200, b"")
