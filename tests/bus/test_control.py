from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.bus.control import Disconnect, decode
from gunicorn_realtime.errors import ProtocolError
from gunicorn_realtime.protocols.websocket_close import CloseCode

codes = st.sampled_from([1000, 1001, 1008, 1013]) | st.integers(3000, 4999)


@given(st.lists(st.text()).map(tuple), st.none() | st.text(), codes)
def test_what_was_encoded_is_decoded_again(labels, channel, code):
    control = Disconnect(labels, channel, code)

    assert decode(control.encode()) == control


@pytest.mark.parametrize("code", [0, 999, CloseCode.NO_STATUS_RECEIVED, 1006, 1015, 2999, 5000, -1])
def test_code_that_no_close_frame_may_have_is_refused(code):
    with pytest.raises(ValueError, match=f"a close frame must not have the code {code!r}"):
        Disconnect((), "news", code)


def encode(**fields: object) -> bytes:
    return json.dumps({"disconnect": {"labels": [], "channel": None, "code": 4000, **fields}}).encode()


def test_message_of_the_tests_below_is_right_but_for_what_they_change():
    assert decode(encode()) == Disconnect((), None, 4000)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"disconnect": null}',
        b'{"disconnect": {"labels": [], "channel": "news"}}',
        encode(labels=None),
        encode(labels="user:7"),
        encode(labels=[7]),
        encode(labels=[[]]),
        encode(channel=7),
        encode(code="4000"),
        encode(code=4000.5),
        encode(code=True),
        encode(code=1005),
    ],
)
def test_anything_else_is_refused(payload):
    with pytest.raises(ProtocolError, match=r"a control message is (not JSON|none that this version knows)"):
        decode(payload)
