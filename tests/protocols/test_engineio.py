"""ENGINEIO_FUZZ is how many damaged payloads the last test takes."""

from __future__ import annotations

import base64
import json
import os
import random

import pytest
from engineio import packet as oracle_packet
from engineio import payload as oracle_payload
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.errors import ProtocolError, TooLarge
from gunicorn_realtime.protocols import engineio
from gunicorn_realtime.protocols.engineio import Packet, PacketType, Refusal

FUZZ = int(os.environ.get("ENGINEIO_FUZZ", "3000"))

OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = PacketType
BYTES = Packet(MESSAGE, b"\1\2\3\4", is_binary=True)

# U+001E separates the packets of revision 4, which has no escape for it.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1e")).map(str.encode)
packets = st.builds(Packet, st.sampled_from(PacketType), texts) | st.builds(
    Packet, st.just(MESSAGE), st.binary(), st.just(True)
)
revisions = st.sampled_from([3, 4])


# Vectors


@pytest.mark.parametrize(
    ("revision", "message", "is_binary", "packet"),
    [
        # https://socket.io/docs/v4/engine-io-protocol, "WebSocket" and "Upgrade"
        (4, b"4hello", False, Packet(MESSAGE, b"hello")),
        (4, b"\1\2\3\4", True, BYTES),
        (4, b"2", False, Packet(PING)),
        (4, b"3probe", False, Packet(PONG, b"probe")),
        (4, b"5", False, Packet(UPGRADE)),
        # https://github.com/socketio/engine.io-protocol/tree/v3
        (3, b"2probe", False, Packet(PING, b"probe")),
        (3, b"4" + "€".encode(), False, Packet(MESSAGE, "€".encode())),
        (3, b"\4\1\2\3\4", True, BYTES),
    ],
)
def test_websocket_message_is_one_packet(revision, message, is_binary, packet):
    assert engineio.parse_packet(message, revision, is_binary=is_binary) == packet
    assert engineio.encode_packet(packet, revision) == (message, is_binary)


@pytest.mark.parametrize(("revision", "message"), [(4, b"bAQIDBA=="), (3, b"b4AQIDBA==")])
def test_client_without_binary_websockets_sends_base64(revision, message):
    assert engineio.parse_packet(message, revision, is_binary=False) == BYTES


def test_java_client_wraps_base64_into_lines():
    data = bytes(range(100))

    assert engineio.parse_packet(b"b" + base64.encodebytes(data), 4, is_binary=False).data == data


@pytest.mark.parametrize(
    ("revision", "body", "parsed"),
    [
        # https://socket.io/docs/v4/engine-io-protocol, "Packet encoding"
        (4, b"4hello\x1e2\x1e4world", [Packet(MESSAGE, b"hello"), Packet(PING), Packet(MESSAGE, b"world")]),
        (4, b"4hello\x1ebAQIDBA==", [Packet(MESSAGE, b"hello"), BYTES]),
        # https://github.com/socketio/engine.io-protocol/tree/v3, "Payload"
        (3, b"6:4hello2:4" + "€".encode(), [Packet(MESSAGE, b"hello"), Packet(MESSAGE, "€".encode())]),
        (3, b"2:4" + "€".encode() + b"10:b4AQIDBA==", [Packet(MESSAGE, "€".encode()), BYTES]),
        (3, b"3:4" + "😀".encode() + b"1:2", [Packet(MESSAGE, "😀".encode()), Packet(PING)]),
        (3, b"0:", []),
    ],
)
def test_payload_is_a_sequence_of_packets(revision, body, parsed):
    assert engineio.parse_payload(body, revision) == parsed
    assert engineio.encode_payload(parsed, revision) == body


def test_binary_payload_counts_the_bytes_of_texts():
    body = b"\0\4\xff4" + "€".encode() + b"\1\5\xff\4\1\2\3\4"

    assert engineio.parse_payload(body, 3, is_binary=True) == [Packet(MESSAGE, "€".encode()), BYTES]
    assert engineio.encode_payload([Packet(MESSAGE, "€".encode()), BYTES], 3, binary=True) == body


def test_length_of_a_binary_payload_has_one_byte_for_each_digit():
    body = engineio.encode_payload([Packet(MESSAGE, bytes(120), is_binary=True)], 3, binary=True)

    assert body == b"\1\1\2\1\xff\4" + bytes(120)


def test_open_packet_has_milliseconds_and_exactly_these_keys():
    packet = engineio.encode_open(
        "lv_VI97HAXpY6yYWAAAC",
        upgrades=["websocket"],
        ping_interval=25,
        ping_timeout=0.2,
        max_payload=1000000,
    )

    assert packet == Packet(
        OPEN,
        b'{"sid":"lv_VI97HAXpY6yYWAAAC","upgrades":["websocket"],'
        b'"pingInterval":25000,"pingTimeout":200,"maxPayload":1000000}',
    )


@pytest.mark.parametrize(
    ("refusal", "status", "body"),
    [
        (Refusal.TRANSPORT_UNKNOWN, 400, b'{"code":0,"message":"Transport unknown"}'),
        (Refusal.SESSION_UNKNOWN, 400, b'{"code":1,"message":"Session ID unknown"}'),
        (Refusal.BAD_HANDSHAKE_METHOD, 400, b'{"code":2,"message":"Bad handshake method"}'),
        (Refusal.BAD_REQUEST, 400, b'{"code":3,"message":"Bad request"}'),
        (Refusal.FORBIDDEN, 403, b'{"code":4,"message":"Forbidden"}'),
        (Refusal.UNSUPPORTED_VERSION, 400, b'{"code":5,"message":"Unsupported protocol version"}'),
    ],
)
def test_refusal_is_told_as_the_official_server_does(refusal, status, body):
    assert (refusal.status, refusal.body) == (status, body)


# What is no packet


@pytest.mark.parametrize(
    ("revision", "message", "is_binary", "reason"),
    [
        (4, b"", False, "expected a type from 0 to 6"),
        (4, b"7", False, "expected a type from 0 to 6"),
        (4, b"abc", False, "expected a type from 0 to 6"),
        (4, "\N{FULLWIDTH DIGIT FOUR}".encode(), False, "expected a type from 0 to 6"),
        (4, b"4\xff", False, "not UTF-8"),
        (4, b"4\xed\xa0\x80", False, "not UTF-8"),
        (4, b"bAQI", False, "not base64"),
        (4, b"bAQ=I", False, "not base64"),
        (4, b"b\xff", False, "not base64"),
        (3, b"b", False, "expected 4"),
        (3, b"b2AQIDBA==", False, "expected 4"),
        (3, b"", True, "expected 0x04"),
        (3, b"\2", True, "expected 0x04"),
        (3, b"4hello", True, "expected 0x04"),
    ],
)
def test_message_that_is_no_packet_is_an_error(revision, message, is_binary, reason):
    with pytest.raises(ProtocolError, match=reason):
        engineio.parse_packet(message, revision, is_binary=is_binary)


@pytest.mark.parametrize(
    ("revision", "body", "is_binary", "reason"),
    [
        (4, b"", False, "is empty"),
        (3, b"", False, "is empty"),
        (3, b"", True, "is empty"),
        (4, b"4a\x1e", False, "expected a type"),
        (4, b"\x1e4a", False, "expected a type"),
        (3, b"4hello", False, "no length"),
        (3, b":4", False, "no length"),
        (3, b"-1:4", False, "no length"),
        (3, b"1e1:4", False, "no length"),
        (3, b"2:4a3", False, "no length"),
        (3, "\N{FULLWIDTH DIGIT TWO}:4a".encode(), False, "no length"),
        (3, b"1" * 1_000_000 + b":4", False, "no length"),
        (3, "é".encode() + b"1" * 1_000_000 + b":4", False, "no length"),
        (3, b"3:4a", False, "ends within a packet"),
        (3, b"3:4" + "é".encode(), False, "ends within a packet"),
        (3, b"2:4" + "😀".encode(), False, "ends within a character"),
        (3, b"2:4\xff", False, "not UTF-8"),
        (3, b"\0\2\xff4", True, "ends within a packet"),
        (3, b"\2\1\xff4", True, "no kind and length"),
        (3, b"\0\xff4", True, "no kind and length"),
        (3, b"\0\x0a\xff4", True, "no kind and length"),
        (3, b"\0" + b"\1" * 1_000_000 + b"\xff4", True, "no kind and length"),
        (3, b"\0\0\xff", True, "expected a type"),
        (3, b"\1\0\xff", True, "expected 0x04"),
    ],
)
def test_body_that_is_no_payload_is_an_error(revision, body, is_binary, reason):
    with pytest.raises(ProtocolError, match=reason):
        engineio.parse_payload(body, revision, is_binary=is_binary)


@pytest.mark.parametrize(
    ("revision", "is_binary", "one"), [(4, False, b"\x1e2"), (3, False, b"1:2"), (3, True, b"\0\1\xff2")]
)
def test_payload_of_too_many_packets_is_too_large(revision, is_binary, one):
    body = (one * 4).removeprefix(b"\x1e")

    assert engineio.parse_payload(body, revision, is_binary=is_binary, max_packets=4) == [Packet(PING)] * 4
    with pytest.raises(TooLarge, match="more than 3 packets"):
        engineio.parse_payload(body, revision, is_binary=is_binary, max_packets=3)


# Any packet


@given(packet=packets, revision=revisions)
def test_encoded_packet_is_parsed_as_it_was(packet, revision):
    message, is_binary = engineio.encode_packet(packet, revision)

    assert engineio.parse_packet(message, revision, is_binary=is_binary) == packet


@given(sent=st.lists(packets, min_size=1), revision=revisions)
def test_encoded_payload_is_parsed_as_it_was(sent, revision):
    assert engineio.parse_payload(engineio.encode_payload(sent, revision), revision) == sent


@given(sent=st.lists(packets, min_size=1))
def test_encoded_binary_payload_is_parsed_as_it_was(sent):
    assert engineio.parse_payload(engineio.encode_payload(sent, 3, binary=True), 3, is_binary=True) == sent


# python-engineio 4 knows revision 4 alone. It reads data as JSON where it can, takes 16 packets, and takes
# what is no packet of the protocol: an empty body, the types 7 to 9 and those of other scripts' digits,
# base64 with anything in it, and texts that begin with `d=`, which is JSONP's.


def to_oracle(packet: Packet) -> oracle_packet.Packet:
    data = packet.data if packet.is_binary else packet.data.decode()
    return oracle_packet.Packet(packet.type, data)


def as_oracle_reads(packet: Packet) -> object:
    if packet.is_binary:
        return packet.data
    text = packet.data.decode()
    if text[:1].isnumeric():
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


@given(sent=st.lists(packets, min_size=1, max_size=16))
def test_python_engineio_reads_and_writes_the_same_payloads(sent):
    body = engineio.encode_payload(sent, 4)

    read = oracle_payload.Payload(encoded_payload=body.decode()).packets
    assert [(packet.packet_type, packet.binary) for packet in read] == [
        (packet.type, packet.is_binary) for packet in sent
    ]
    assert repr([packet.data for packet in read]) == repr([as_oracle_reads(packet) for packet in sent])
    assert oracle_payload.Payload([to_oracle(packet) for packet in sent]).encode().encode() == body


# Damaged payloads

PARTS = [
    *[b"4hello", b"2probe", b"bAQIDBA==", b"b4AQIDBA==", b"b", b"4" + "é€😀".encode(), b'42["a",1]'],
    *[b"\x1e", b":", b"6:", b"2:", b"10:", b"0:", b"9" * 12, b"\0", b"\1", b"\xff", b"\0\1\xff", b"\1\2\xff"],
]
SAMPLES = [Packet(MESSAGE, b"hello"), Packet(PING), BYTES, Packet(MESSAGE, "é€😀".encode())]


def damaged_payload(source: random.Random, revision: int, *, is_binary: bool) -> bytes:
    sent = source.choices(SAMPLES, k=source.randint(0, 4))
    body = bytearray(engineio.encode_payload(sent, revision, binary=is_binary))
    for _ in range(source.randint(0, 3)):
        place = source.randrange(len(body) + 1)
        damage = source.choice(PARTS) if source.random() < 0.6 else source.randbytes(source.randint(0, 3))
        body[place : place + source.randint(0, 3)] = damage
    return bytes(body)


def test_damaged_payload_gives_packets_or_an_error():
    source = random.Random(1)
    for _ in range(FUZZ):
        revision, is_binary = source.choice([(4, False), (3, False), (3, True)])
        body = damaged_payload(source, revision, is_binary=is_binary)
        try:
            parsed = engineio.parse_payload(body, revision, is_binary=is_binary, max_packets=8)
        except ProtocolError:
            continue
        assert len(parsed) <= 8
        if parsed:
            encoded = engineio.encode_payload(parsed, revision, binary=is_binary)
            assert engineio.parse_payload(encoded, revision, is_binary=is_binary) == parsed, body
