from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.errors import ProtocolError, TooLarge
from gunicorn_realtime.plumbing.frames import HEADER, MAX_FRAME_SIZE, PROTOCOL, Frame, Kind

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=10,
)
frames = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.dictionaries(st.text(), json_values, max_size=5),
    st.binary(max_size=200),
    st.binary(max_size=200),
)


@given(frames)
def test_what_was_encoded_is_decoded_again(frame):
    assert Frame.decode(frame.encode()) == frame


@given(frames, st.data())
def test_cut_frame_is_refused_unless_only_its_rest_is_cut(frame, data):
    encoded = frame.encode()
    length = data.draw(st.integers(0, len(encoded) - len(frame.rest) - 1))

    with pytest.raises(ProtocolError, match=r"shorter than its header|says that it has"):
        Frame.decode(encoded[:length])


@given(frames, st.integers(0, 255).filter(lambda number: number != PROTOCOL))
def test_frame_of_another_protocol_says_to_restart(frame, protocol):
    encoded = bytes([protocol]) + frame.encode()[1:]

    with pytest.raises(
        ProtocolError, match=f"^a frame of protocol {protocol}, not {PROTOCOL}: restart gunicorn$"
    ):
        Frame.decode(encoded)


@given(st.binary() | st.binary().map(lambda data: bytes([PROTOCOL]) + data))
def test_garbage_gives_a_frame_or_a_protocol_error(data):
    try:
        frame = Frame.decode(data)
    except ProtocolError:
        return
    assert isinstance(frame, Frame)


def encode_raw(fields: bytes, kind: int = Kind.ANNOUNCE) -> bytes:
    return HEADER.pack(PROTOCOL, kind, len(fields), 0) + fields


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode_raw(b"{"), "cannot be read"),
        (encode_raw(b"\xff"), "cannot be read"),
        (encode_raw(b"[" * 100_000), "cannot be read"),
        (encode_raw(b"{}", kind=0), "cannot be read: 0 is not a valid Kind"),
        (encode_raw(b"[]"), "fields are not a JSON object"),
        (encode_raw(b"null"), "fields are not a JSON object"),
    ],
)
def test_fields_that_are_none_are_refused(data, message):
    with pytest.raises(ProtocolError, match=message):
        Frame.decode(data)


def test_frame_that_does_not_fit_into_one_message_is_too_large():
    empty = len(Frame(Kind.HANDOVER, {}).encode())
    Frame(Kind.HANDOVER, {}, rest=b"x" * (MAX_FRAME_SIZE - empty)).encode()

    with pytest.raises(TooLarge, match="a frame has 204801 bytes, more than 204800"):
        Frame(Kind.HANDOVER, {}, rest=b"x" * (MAX_FRAME_SIZE - empty + 1)).encode()


def test_fields_are_json_and_never_anything_that_runs():
    encoded = Frame(Kind.ANNOUNCE, {"bus": ["local:/x", ""]}).encode()

    assert json.loads(encoded[HEADER.size :]) == {"bus": ["local:/x", ""]}
