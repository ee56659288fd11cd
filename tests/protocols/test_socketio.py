"""SOCKETIO_FUZZ is how many damaged sequences of messages the last test takes."""

from __future__ import annotations

import json
import os
import random
from datetime import date

import pytest
import socketio.packet
from django.core.serializers.json import DjangoJSONEncoder
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.errors import ProtocolError, TooLarge
from gunicorn_realtime.protocols.socketio import (
    BINARY_TYPES,
    MAX_SIZE,
    RESERVED_EVENTS,
    Packet,
    PacketType,
    Parser,
    ack_packet,
    decode_arguments,
    encode,
    encode_arguments,
    event_packet,
    with_last_argument,
)

FUZZ = int(os.environ.get("SOCKETIO_FUZZ", "3000"))

CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR, BINARY_EVENT, BINARY_ACK = PacketType


def placeholder(number: object) -> bytes:
    return b'{"_placeholder":true,"num":%b}' % json.dumps(number).encode()


def parse(text: bytes, *attachments: bytes, **limits) -> Packet | None:
    parser = Parser(**limits)
    packet = parser.feed(text, is_binary=False)
    for data in attachments:
        assert packet is None
        packet = parser.feed(data, is_binary=True)
    return packet


# Vectors


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        # https://socket.io/docs/v4/socket-io-protocol, "Packet encoding" and "Exchange protocol"
        (b"0", Packet(CONNECT)),
        (b"0/admin,", Packet(CONNECT, "/admin")),
        (b'0/admin,{"token":"123"}', Packet(CONNECT, "/admin", data=b'{"token":"123"}')),
        (b"1", Packet(DISCONNECT)),
        (b"1/admin,", Packet(DISCONNECT, "/admin")),
        (b'2["foo"]', Packet(EVENT, data=b'["foo"]')),
        (b'2/admin,["bar"]', Packet(EVENT, "/admin", data=b'["bar"]')),
        (b'212["foo"]', Packet(EVENT, id=12, data=b'["foo"]')),
        (b'3/admin,13["bar"]', Packet(ACK, "/admin", 13, b'["bar"]')),
        # https://github.com/socketio/socket.io-protocol/tree/v4
        (b"0/admin?token=1234&uid=abcd,", Packet(CONNECT, "/admin", query="token=1234&uid=abcd")),
        (b'2/chat,456["project:delete",123]', Packet(EVENT, "/chat", 456, b'["project:delete",123]')),
        (b"2[1]", Packet(EVENT, data=b"[1]")),
        (b"30[]", Packet(ACK, id=0, data=b"[]")),
    ],
)
def test_text_is_one_packet(text, packet):
    assert parse(text) == packet
    assert encode(packet) == text


@pytest.mark.parametrize(
    ("text", "attachments", "packet"),
    [
        # https://socket.io/docs/v4/socket-io-protocol, "Packet encoding"
        (
            b'51-["baz",%b]' % placeholder(0),
            (b"\1\2\3\4",),
            Packet(BINARY_EVENT, data=b'["baz",%b]' % placeholder(0), attachments=(b"\1\2\3\4",)),
        ),
        (
            b'52-/admin,["baz",%b,%b]' % (placeholder(1), placeholder(0)),
            (b"a", b"b"),
            Packet(
                BINARY_EVENT,
                "/admin",
                data=b'["baz",%b,%b]' % (placeholder(1), placeholder(0)),
                attachments=(b"a", b"b"),
            ),
        ),
        (
            b"61-15[%b]" % placeholder(0),
            (b"",),
            Packet(BINARY_ACK, id=15, data=b"[%b]" % placeholder(0), attachments=(b"",)),
        ),
    ],
)
def test_packet_is_complete_with_its_last_attachment(text, attachments, packet):
    assert parse(text, *attachments) == packet
    assert encode(packet) == text


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        (b"0/admin", Packet(CONNECT, "/admin")),
        (b"1/admin", Packet(DISCONNECT, "/admin")),
        (b"0/?a=1,", Packet(CONNECT, query="a=1")),
        (b"0/admin?a=1", Packet(CONNECT, "/admin", query="a=1")),
        (b'2/,["a"]', Packet(EVENT, data=b'["a"]')),
        (b'2/a?b,["a"]', Packet(EVENT, "/a?b", data=b'["a"]')),
        (b'2007["a"]', Packet(EVENT, id=7, data=b'["a"]')),
    ],
)
def test_other_ways_to_write_a_packet_are_read(text, packet):
    assert parse(text) == packet


def test_packet_behind_a_binary_one_is_read_by_the_same_parser():
    parser = Parser()
    for _ in range(2):
        parser.feed(b'51-["a",%b]' % placeholder(0), is_binary=False)
        packet = parser.feed(b"x", is_binary=True)
        assert packet is not None
        assert packet.attachments == (b"x",)

    assert parser.feed(b'2["b"]', is_binary=False) == Packet(EVENT, data=b'["b"]')


def test_placeholder_is_plain_data_where_nothing_is_attached():
    packet = parse(b'2["a",%b]' % placeholder(0))

    assert packet is not None
    assert decode_arguments(packet.data, packet.attachments) == ["a", {"_placeholder": True, "num": 0}]


# What is refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "expected a type"),
        (b"7", "expected a type"),
        (b"abc", "expected a type"),
        ("\N{FULLWIDTH DIGIT TWO}".encode() + b'["a"]', "expected a type"),
        (b"2", "expected b'\\['"),
        (b"2{}", "expected b'\\['"),
        (b'2 ["a"]', "expected b'\\['"),
        (b'2abc["x"]', "expected b'\\['"),
        (b'21-["x"]', "expected b'\\['"),
        (b"2[]", "no name"),
        (b"2[true]", "no name"),
        (b"2[null]", "no name"),
        (b"2[[]]", "no name"),
        (b'2["a"', "not JSON"),
        (b'2["a"]]', "not JSON"),
        (b"2['a']", "not JSON"),
        (b'2["a",NaN]', "NaN is not JSON"),
        (b'2["a",-Infinity]', "-Infinity is not JSON"),
        (b'2["a\n"]', "not JSON"),
        (b'2["a",' + b"1" * 5000 + b"]", "not JSON"),
        (b"2" + b"[" * 200_000 + b"]" * 200_000, "not JSON"),
        (b'2["\xff"]', "not UTF-8"),
        ('2["a"]'.encode("utf-16"), "expected a type"),
        (b"2[\0" + '"a"]'.encode("utf-16-le"), "not JSON"),
        (b"0[]", "expected b'{'"),
        (b"0null", "expected b'{'"),
        (b'0"a"', "expected b'{'"),
        (b"0{", "not JSON"),
        (b"1{}", "DISCONNECT has data"),
        (b"1/admin,[]", "DISCONNECT has data"),
        (b"3[]", "ACK has no id"),
        (b"31", "expected b'\\['"),
        (b"31{}", "expected b'\\['"),
        (b'4{"message":"x"}', "client sent CONNECT_ERROR"),
        (b"4", "client sent CONNECT_ERROR"),
        (b'5["a"]', "expected a type and its attachments"),
        (b'5-["a"]', "expected a type and its attachments"),
        (b'5-1-["a"]', "expected a type and its attachments"),
        (b'51.0-["a"]', "expected a type and its attachments"),
        (b"5" + b"1" * 1_000_000 + b'-["a"]', "expected a type and its attachments|more than"),
        (b'50-["a"]', "no attachments"),
        (b'61-[{"_placeholder":true,"num":0}]', "ACK has no id"),
        (b"2" + b"1" * 16 + b'["a"]', "more than 15 digits"),
        (b"2" + b"1" * 900_000 + b'["a"]', "more than 15 digits"),
        (b"2/" + b"a" * 200 + b',["a"]', "namespace has more than 200 bytes"),
        (b"2/" + "é".encode() * 100 + b',["a"]', "namespace has more than 200 bytes"),
        (b"0/a\n,", "control characters"),
        (b"0/a\x7f,", "control characters"),
        (b"0/a?\0,", "control characters"),
        (b"0/\xff,", "not UTF-8"),
        *[(b'2["%b"]' % name.encode(), "reserved name") for name in sorted(RESERVED_EVENTS)],
        (b'51-["connect",%b]' % placeholder(0), "reserved name"),
    ],
)
def test_text_that_no_client_may_send_is_an_error(text, reason):
    with pytest.raises(ProtocolError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'51-["a"]', "no placeholder: 0"),
        (b'52-["a",%b]' % placeholder(1), "no placeholder: 0"),
        (b'51-["a",%b]' % placeholder(1), "no attachment of its own: 1"),
        (b'51-["a",%b]' % placeholder(-1), "no attachment of its own: -1"),
        (b'51-["a",%b]' % placeholder(0.5), "no attachment of its own: 0.5"),
        (b'51-["a",%b]' % placeholder(False), "no attachment of its own: False"),
        (b'51-["a",%b]' % placeholder("length"), "no attachment of its own: 'length'"),
        (b'51-["a",{"_placeholder":true}]', "no attachment of its own: None"),
        (b'51-["a",%b,%b]' % (placeholder(0), placeholder(0)), "no attachment of its own: 0"),
    ],
)
def test_each_attachment_has_exactly_one_placeholder(text, reason):
    with pytest.raises(ProtocolError, match=reason):
        parse(text)


def test_binary_message_without_a_packet_is_an_error():
    with pytest.raises(ProtocolError, match="a binary message came where a text was expected"):
        Parser().feed(b"x", is_binary=True)


def test_text_between_attachments_is_an_error():
    parser = Parser()
    parser.feed(b'52-["a",%b,%b]' % (placeholder(0), placeholder(1)), is_binary=False)
    parser.feed(b"x", is_binary=True)

    with pytest.raises(ProtocolError, match="a text came where 1 attachments were expected"):
        parser.feed(b'2["a"]', is_binary=False)


def test_more_attachments_than_allowed_are_too_large():
    text = b'53-["a",%b,%b,%b]' % (placeholder(0), placeholder(1), placeholder(2))

    assert parse(text, b"x", b"y", b"z", max_attachments=3) is not None
    with pytest.raises(TooLarge, match="3 attachments, more than 2"):
        parse(text, max_attachments=2)


def test_text_and_attachments_together_have_a_limit():
    text = b'51-["a",%b]' % placeholder(0)

    assert parse(text, b"x" * 10, max_size=len(text) + 10) is not None
    with pytest.raises(TooLarge, match=f"{len(text) + 11} bytes, more than {len(text) + 10}"):
        parse(text, b"x" * 11, max_size=len(text) + 10)
    with pytest.raises(TooLarge, match=f"{len(text)} bytes, more than {len(text) - 1}"):
        parse(text, max_size=len(text) - 1)


def test_default_limit_is_that_of_the_official_server():
    assert parse(b'2["%b"]' % (b"a" * (MAX_SIZE - 5))) is not None
    with pytest.raises(TooLarge):
        parse(b'2["%b"]' % (b"a" * (MAX_SIZE - 4)))


# Arguments


def test_bytes_of_every_kind_are_replaced_wherever_they_are():
    data, attachments = encode_arguments(["a", b"1", {"b": [bytearray(b"2"), (memoryview(b"3"), None)]}])

    assert data == b'["a",%b,{"b":[%b,[%b,null]]}]' % (placeholder(0), placeholder(1), placeholder(2))
    assert attachments == (b"1", b"2", b"3")
    assert decode_arguments(data, attachments) == ["a", b"1", {"b": [b"2", [b"3", None]]}]


def test_text_is_not_escaped_but_half_a_character_is():
    data, _ = encode_arguments(["é😀", "\ud800"])

    assert data == '["é😀","\\ud800"]'.encode()
    assert decode_arguments(data, ()) == ["é😀", "\ud800"]


def test_encoder_of_the_site_is_used_for_what_json_does_not_know():
    data, attachments = encode_arguments([date(2025, 1, 2), b"x"], DjangoJSONEncoder)

    assert data == b'["2025-01-02",%b]' % placeholder(0)
    assert attachments == (b"x",)


@pytest.mark.parametrize(
    ("argument", "error"), [(float("nan"), ValueError), (object(), TypeError), ({b"key": 1}, TypeError)]
)
def test_argument_that_json_cannot_hold_is_an_error_of_json(argument, error):
    with pytest.raises(error):
        encode_arguments(["a", argument])


@pytest.mark.parametrize(
    ("data", "attachments"),
    [(b"", ()), (b"{}", ()), (b"[NaN]", ()), (b"[" * 100_000, ()), (placeholder(1), (b"x",))],
)
def test_data_that_is_no_list_is_an_error(data, attachments):
    with pytest.raises(ProtocolError):
        decode_arguments(data, attachments)


def test_attachments_make_a_packet_binary():
    assert event_packet("/", b'["a"]').type == EVENT
    assert event_packet("/", b'["a"]', [b"x"], 1) == Packet(BINARY_EVENT, "/", 1, b'["a"]', (b"x",))
    assert ack_packet("/a", b"[]", id=2) == Packet(ACK, "/a", 2, b"[]")
    assert ack_packet("/a", b"[]", [b"x"], id=2).type == BINARY_ACK


@pytest.mark.parametrize(
    ("text", "argument", "longer"),
    [
        (b'2/ns,["ev",1]', "x", b'2/ns,["ev",1,"x"]'),
        (b'2["ev"]', '"]', b'2["ev","\\"]"]'),
    ],
)
def test_argument_is_added_to_an_encoded_event(text, argument, longer):
    assert with_last_argument(text, argument) == longer


# Any packet

json_keys = st.text().filter(lambda key: key != "_placeholder")
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    leaves | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(json_keys, inner, max_size=4),
    max_leaves=12,
)
names = st.text().filter(lambda name: name not in RESERVED_EVENTS) | st.integers()
events = st.builds(lambda name, rest: [name, *rest], names, st.lists(values, max_size=4))
namespaces = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=","), max_size=40).map(
    lambda name: f"/{name}"
)
ids = st.integers(0, 10**15 - 1)


def feed_all(packet: Packet) -> Packet | None:
    return parse(encode(packet), *packet.attachments, max_attachments=100)


@given(namespace=namespaces, arguments=events, packet_id=st.none() | ids)
def test_encoded_event_is_parsed_as_it_was(namespace, arguments, packet_id):
    packet = event_packet(namespace, *encode_arguments(arguments), packet_id)

    assert feed_all(packet) == packet
    assert decode_arguments(packet.data, packet.attachments) == arguments


@given(namespace=namespaces, arguments=st.lists(values, max_size=4), packet_id=ids)
def test_encoded_acknowledgement_is_parsed_as_it_was(namespace, arguments, packet_id):
    packet = ack_packet(namespace, *encode_arguments(arguments), packet_id)

    assert feed_all(packet) == packet
    assert decode_arguments(packet.data, packet.attachments) == arguments


# python-socketio 5 escapes what is not ASCII, and writes `/` as no namespace. It takes what the official
# parser does not: any JSON or none as the data of any type, NaN, reserved names, DISCONNECT with data,
# attachments without placeholders and placeholders of others (where num is -1, the last). It cuts a
# namespace at "?" in every packet.


@given(namespace=namespaces.filter(lambda name: "?" not in name), arguments=events, packet_id=st.none() | ids)
def test_python_socketio_reads_and_writes_the_same_events(namespace, arguments, packet_id):
    packet = event_packet(namespace, *encode_arguments(arguments), packet_id)

    read = socketio.packet.Packet(encoded_packet=encode(packet).decode())
    assert read.attachment_count == len(packet.attachments)
    for data in packet.attachments:
        read.add_attachment(data)
    assert (read.packet_type, read.namespace or "/", read.id) == (packet.type, namespace, packet_id)
    assert read.data == arguments

    written = socketio.packet.Packet(EVENT, arguments, namespace, packet_id).encode()
    text, *attachments = written if isinstance(written, list) else [written]
    parsed = parse(text.encode(), *attachments, max_attachments=100)
    assert parsed is not None
    assert (parsed.type, parsed.namespace, parsed.id) == (packet.type, namespace, packet_id)
    assert decode_arguments(parsed.data, parsed.attachments) == arguments


# Damaged packets

TEXTS = [
    *[b"0", b'0/admin,{"token":"123"}', b"1", b'2["foo",1.5,null]', '2/é,12["😀"]'.encode(), b'313["bar"]'],
    *[b'51-["baz",%b]' % placeholder(0), b'52-/a,7["b",{"c":[%b]},%b]' % (placeholder(0), placeholder(1))],
    b"61-15[%b]" % placeholder(0),
]
PARTS = [
    *[
        b"5",
        b"6",
        b"2",
        b"-",
        b"1-",
        b"/",
        b"/a,",
        b"?",
        b",",
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"\\u",
        b"\\ud800",
    ],
    *[
        b"NaN",
        b"1e999",
        b"9" * 16,
        b"\xff",
        b"\0",
        b"[" * 50,
        b"-1",
        b'"connect"',
        placeholder(0),
        placeholder(2),
    ],
]


def damaged_messages(source: random.Random) -> list[tuple[bytes, bool]]:
    messages: list[tuple[bytes, bool]] = []
    for text in source.choices(TEXTS, k=source.randint(1, 3)):
        damaged = bytearray(text)
        for _ in range(source.choice([0, 0, 1, 2])):
            place = source.randrange(len(damaged) + 1)
            damage = source.choice(PARTS) if source.random() < 0.7 else source.randbytes(source.randint(0, 2))
            damaged[place : place + source.randint(0, 3)] = damage
        messages.append((bytes(damaged), False))
        attachments = (int(text[1:2]) if text[:1] in b"56" else 0) + source.choice([0, 0, 0, 0, 1])
        messages += [(source.randbytes(source.choice([0, 3, 100])), True)] * attachments
    return messages


def test_damaged_messages_give_packets_or_an_error():
    source = random.Random(1)
    for _ in range(FUZZ):
        messages = damaged_messages(source)
        parser = Parser(max_attachments=2, max_size=250)
        try:
            packets = [parser.feed(data, is_binary=is_binary) for data, is_binary in messages]
        except ProtocolError:
            continue
        for packet in filter(None, packets):
            assert len(encode(packet)) + sum(map(len, packet.attachments)) <= 251, messages
            assert feed_all(packet) == packet, messages
            if packet.type in {EVENT, ACK, *BINARY_TYPES}:
                assert isinstance(decode_arguments(packet.data, packet.attachments), list)
