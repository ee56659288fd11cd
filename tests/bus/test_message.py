from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.bus.message import (
    MAGIC,
    MAX_HEADER_SIZE,
    Message,
    Stamp,
    decode,
    decode_body,
    encode,
    encode_body,
    parse_cursor,
)
from gunicorn_realtime.errors import ProtocolError
from gunicorn_realtime.protocols import sse


@given(st.binary(), st.none() | st.text())
def test_what_was_encoded_is_decoded_again(data, event):
    message = decode("news", encode(data, event))
    assert (message.channel, message.data, message.event, message.stamp) == ("news", data, event, None)


@given(st.binary(), st.none() | st.text())
def test_body_is_what_follows_the_stamp(data, event):
    stamp = Stamp("a1b2c3", 2, 1)
    body = encode_body(data, event)
    for message in (decode_body("news", body, stamp), decode("news", MAGIC + b"a1b2c3 2 1\n" + body)):
        assert (message.data, message.event, message.stamp) == (data, event, stamp)


@given(st.one_of(st.text(), st.text().map(lambda text: "\u00ffRT1\n{}\n" + text)))
def test_plain_text_is_itself_whatever_it_looks_like(text):
    message = decode("news", text.encode())
    assert (message.data, message.event, message.stamp) == (text.encode(), None, None)
    assert encode(text.encode()) == text.encode()


@given(st.binary())
def test_bytes_cannot_pass_for_an_envelope(data):
    forged = encode(MAGIC + data)
    message = decode("news", forged)
    assert (message.data, message.event, message.stamp) == (MAGIC + data, None, None)


headers = st.dictionaries(st.sampled_from(["event", "other"]), st.none() | st.text() | st.integers()).map(
    lambda fields: json.dumps(fields).encode()
)
stamps = st.from_regex(rb"[a-z0-9 \r_+-]*", fullmatch=True)


@given(
    st.one_of(
        st.binary().map(lambda rest: MAGIC + rest),
        st.tuples(stamps, st.binary() | headers, st.binary()).map(lambda parts: MAGIC + b"\n".join(parts)),
    )
)
def test_garbage_gives_a_message_or_a_protocol_error(payload):
    try:
        message = decode("news", payload)
    except ProtocolError:
        return
    assert isinstance(message, Message)
    if message.stamp is not None:  # whatever it is, an engine can send it
        sse.encode_event(message.data, id=message.stamp.cursor)


def test_stamp_is_read_from_the_envelope():
    payload = MAGIC + b'a1B2c3 1700000000000001 1700000000000000\n{"event": "goal"}\n1:0\n'
    message = decode("news", payload)
    assert message.stamp == Stamp("a1B2c3", 1700000000000001, 1700000000000000)
    assert message.stamp.cursor == "a1B2c3-1700000000000001"
    assert (message.event, message.data) == ("goal", b"1:0\n")


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (b"", "ends before its data"),
        (b"\n{}", "ends before its data"),
        (b"\n{\n", "header is not JSON"),
        (b"\n" + b"[" * 10_000 + b"\n", "header is not JSON"),
        (b"\n[]\n", "header is not a JSON object"),
        (b'\n{"event": 1}\n', "event is not a string"),
        (b"\n" + b" " * (MAX_HEADER_SIZE + 1) + b"\n", "header has 16385 bytes, more than 16384"),
        (b" \n{}\n", "stamp is not"),
        (b"epoch 1\n{}\n", "stamp is not"),
        (b"epoch 1 x\n{}\n", "stamp is not"),
        (b"epoch 1_0 0\n{}\n", "stamp is not"),
        (b"epoch -1 0\n{}\n", "stamp is not"),
        (b"e\rpoch 1 0\n{}\n", "stamp is not"),
        (b"epoch %b 0\n{}\n" % (b"1" * 17), "stamp is not"),
    ],
)
def test_broken_envelope_is_an_error(rest, message):
    with pytest.raises(ProtocolError, match=message):
        decode("news", MAGIC + rest)


def test_message_is_encoded_once_for_each_encoding():
    message = Message("news", b"hello")
    calls = []

    def shout(message: Message) -> bytes:
        calls.append(message)
        return message.data.upper()

    assert [message.encoded("shout", shout) for _ in range(3)] == [b"HELLO"] * 3
    assert message.encoded("other", lambda message: message.data) == b"hello"
    assert calls == [message]


def test_cursor_of_a_message_names_its_epoch_and_its_id():
    assert parse_cursor(Stamp("a1b2c3", 1700000000000001, 1).cursor) == ("a1b2c3", 1700000000000001)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1",
        "a1b2c3-",
        "-1",
        "a1b2c3-x",
        "a1-b2-3",
        "a1b2c3-1\n",
        "a1b2c3-\u0661",
        "a1b2c3-" + "1" * 17,
    ],
)
def test_what_can_be_no_cursor_is_none(text):
    assert parse_cursor(text) is None
