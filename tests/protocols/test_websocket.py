from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import connection, events

from gunicorn_realtime.errors import ProtocolError, TooLarge
from gunicorn_realtime.protocols import websocket
from gunicorn_realtime.protocols.websocket import (
    BinaryMessage,
    Close,
    CloseCode,
    Event,
    Opcode,
    Parser,
    Ping,
    Pong,
    TextMessage,
)
from gunicorn_realtime.protocols.websocket_deflate import MIN_COMPRESSED_SIZE, Deflate

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = Opcode
MASK = bytes.fromhex("37fa213d")  # that of RFC 6455, section 5.7


def frame(opcode: int, payload: bytes = b"", *, more: bool = False, is_compressed: bool = False) -> bytes:
    """Return a client's frame."""
    return websocket.encode_frame(opcode, payload, is_final=not more, is_compressed=is_compressed, mask=MASK)


def parse(*reads: bytes, max_message_size: int = 1 << 20, deflate: Deflate | None = None) -> list[Event]:
    parser = Parser(max_message_size, deflate)
    parsed: list[Event] = []
    for data in reads:
        parser.feed(data)
        parsed += parser.events()
    return parsed


def outcome(*reads: bytes, **options) -> tuple[list[Event], CloseCode | None]:
    """Return the events, and the code of the error behind them if there is one."""
    parser = Parser(**options)
    parsed: list[Event] = []
    try:
        for data in reads:
            parser.feed(data)
            parsed.extend(parser.events())
    except ProtocolError as exc:
        return parsed, websocket.close_code(exc)
    return parsed, None


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# Frames and messages


@pytest.mark.parametrize(
    ("data", "event"),
    [
        # RFC 6455, section 5.7: those of a client.
        ("81 85 37fa213d 7f9f4d5158", TextMessage(b"Hello")),
        ("8a 85 37fa213d 7f9f4d5158", Pong(b"Hello")),
        # Those of a server, masked with zeros.
        ("01 83 00000000 48656c 80 82 00000000 6c6f", TextMessage(b"Hello")),
        ("89 85 00000000 48656c6c6f", Ping(b"Hello")),
        ("82 fe 0100 00000000" + "00" * 256, BinaryMessage(bytes(256))),
        ("82 ff 0000000000010000 00000000" + "00" * 65536, BinaryMessage(bytes(65536))),
        ("88 80 00000000", Close(CloseCode.NO_STATUS_RECEIVED, "")),
        ("88 82 00000000 03e8", Close(1000, "")),
    ],
)
def test_frames_of_the_specification(data, event):
    assert parse(bytes.fromhex(data)) == [event]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
@pytest.mark.parametrize(
    ("opcode", "message"), [(TEXT, TextMessage), (BINARY, BinaryMessage)], ids=["text", "binary"]
)
def test_message_of_any_size_in_one_frame(opcode, message, size):
    assert parse(frame(opcode, b"x" * size)) == [message(b"x" * size)]


def test_message_is_put_together_from_fragments():
    fragments = (
        frame(BINARY, b"a", more=True) + frame(CONTINUATION, b"", more=True) + frame(CONTINUATION, b"b")
    )
    assert parse(fragments) == [BinaryMessage(b"ab")]


def test_control_frames_between_fragments_come_first():
    data = frame(TEXT, b"a", more=True) + frame(PING, b"1") + frame(PONG, b"2") + frame(CONTINUATION, b"b")
    assert parse(data) == [Ping(b"1"), Pong(b"2"), TextMessage(b"ab")]


def test_close_may_come_within_a_message():
    assert parse(frame(TEXT, b"a", more=True) + frame(CLOSE, b"\x03\xe9bye")) == [Close(1001, "bye")]


def test_what_follows_a_close_is_ignored():
    parser = Parser()
    parser.feed(frame(CLOSE) + frame(TEXT, b"late"))
    assert list(parser.events()) == [Close()]
    parser.feed(b"no frame at all")
    assert list(parser.events()) == []
    assert parser.pending_size == 0


def test_nothing_follows_an_error():
    parser = Parser()
    parser.feed(frame(TEXT, b"early") + frame(CONTINUATION) + frame(TEXT, b"late"))
    received = []
    with pytest.raises(ProtocolError, match="a frame continues no message"):
        received.extend(parser.events())
    assert received == [TextMessage(b"early")]
    parser.feed(frame(TEXT, b"later"))
    assert list(parser.events()) == []
    assert parser.pending_size == 0


def test_events_may_be_left_for_later():
    parser = Parser()
    parser.feed(frame(PING, b"1") + frame(PING, b"2"))
    assert next(iter(parser.events())) == Ping(b"1")
    parser.feed(frame(PING, b"3"))
    assert list(parser.events()) == [Ping(b"2"), Ping(b"3")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x81\x05Hello", "a frame of the client is not masked"),
        (b"\x89\x00", "a frame of the client is not masked"),
        (b"\xc1\x80", "begins with 0xc1: it has a reserved bit"),
        (b"\xa1\x80", "begins with 0xa1: it has a reserved bit"),
        (b"\x91\x80", "begins with 0x91: it has a reserved bit"),
        (b"\xf8\x80", "begins with 0xf8: it has a reserved bit"),
        *[(bytes([0x80 | code, 0x80]), f"opcode {code}, which is reserved") for code in (3, 4, 5, 6, 7)],
        *[(bytes([0x80 | code, 0x80]), f"opcode {code}, which is reserved") for code in (11, 12, 13, 14, 15)],
        (b"\x08\x80", "a control frame is a fragment: CLOSE"),
        (b"\x09\x80", "a control frame is a fragment: PING"),
        (b"\x0a\x80", "a control frame is a fragment: PONG"),
        (b"\x89\xfe", "a control frame has more than 125 bytes"),
        (b"\x88\xff", "a control frame has more than 125 bytes"),
        (b"\x80\x80", "a frame continues no message"),
        (b"\x00\x80", "a frame continues no message"),
        (frame(TEXT, more=True) + b"\x81\x80", "a message begins before the last frame of another"),
        (frame(TEXT, more=True) + b"\x02\x80", "a message begins before the last frame of another"),
        (frame(TEXT, b"whole") + b"\x80\x80", "a frame continues no message"),
        (b"\x82\xfe\x00\x7d" + MASK, "a frame's length, 125, takes more bytes than it needs"),
        (b"\x82\xff" + (65535).to_bytes(8) + MASK, "a frame's length, 65535, takes more bytes"),
        (b"\x82\xff\x80" + bytes(7) + MASK, "a frame's length, 0x8000000000000000, has its highest bit set"),
    ],
)
def test_what_the_protocol_forbids_is_a_protocol_error(data, message):
    with pytest.raises(ProtocolError, match=message) as error:
        parse(data)
    assert websocket.close_code(error.value) == CloseCode.PROTOCOL_ERROR


# Closing


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_close_code_that_may_be_sent_is_taken(code):
    assert parse(frame(CLOSE, code.to_bytes(2) + "tschüß".encode())) == [Close(code, "tschüß")]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_close_code_that_must_not_be_sent_is_a_protocol_error(code):
    with pytest.raises(ProtocolError, match=f"a close frame has an invalid code: {code:04x}") as error:
        parse(frame(CLOSE, code.to_bytes(2)))
    assert websocket.close_code(error.value) == CloseCode.PROTOCOL_ERROR
    if code != CloseCode.NO_STATUS_RECEIVED:
        with pytest.raises(ValueError, match=f"must not have the code {code}"):
            websocket.encode_close(code)


def test_half_a_close_code_is_a_protocol_error():
    assert outcome(frame(CLOSE, b"\x03")) == ([], CloseCode.PROTOCOL_ERROR)


def test_reason_that_is_not_utf8_is_an_invalid_payload():
    assert outcome(frame(CLOSE, b"\x03\xe8\xff")) == ([], CloseCode.INVALID_PAYLOAD)
    assert outcome(frame(CLOSE, b"\x03\xe8\xe2\x82")) == ([], CloseCode.INVALID_PAYLOAD)


# UTF-8

VALID_TEXTS = [
    "κόσμε".encode(),
    b"\xc2\x80",
    b"\xdf\xbf",
    b"\xe0\xa0\x80",
    b"\xef\xbf\xbf",
    b"\xf0\x90\x80\x80",
    b"\xf4\x8f\xbf\xbf",
    b"\x00\x7f",
]

# Each with the number of bytes after which no valid text can come of it.
INVALID_TEXTS = [
    (b"\x80", 1),  # a continuation without a start
    (b"\xc0\xaf", 1),  # overlong
    (b"\xe0\x9f\xbf", 2),
    (b"\xf0\x8f\xbf\xbf", 2),
    (b"\xed\xa0\x80", 3),  # a surrogate; its second byte shows it, but Python waits for all
    (b"\xf4\x90\x80\x80", 2),  # beyond U+10FFFF
    (b"\xf5\x80\x80\x80", 1),
    (b"\xe2\x82\x20", 3),  # a character that is not finished
    (b"\xff", 1),
]


@pytest.mark.parametrize("text", VALID_TEXTS)
def test_text_may_be_cut_anywhere_even_within_a_character(text):
    fragments = [frame(TEXT, more=True), *(frame(CONTINUATION, byte, more=True) for byte in bytewise(text))]
    expected = [TextMessage(text)]
    assert parse(*fragments, frame(CONTINUATION)) == expected
    assert parse(*bytewise(frame(TEXT, text))) == expected


@pytest.mark.parametrize(("text", "last"), INVALID_TEXTS)
def test_text_that_is_not_utf8_fails_at_the_first_byte_that_shows_it(text, last):
    payload = "κόσμε".encode() + text
    frame_of_more = frame(TEXT, payload + bytes(1000))
    bad = len(frame_of_more) - 1000 - len(text) + last

    parser = Parser()
    parser.feed(frame_of_more[: bad - 1])
    assert list(parser.events()) == []
    parser.feed(frame_of_more[bad - 1 : bad])
    with pytest.raises(websocket.InvalidPayload, match="a text is not UTF-8"):
        list(parser.events())


@pytest.mark.parametrize("text", [b"\xc3", b"x\xe2\x82", b"\xf0\x90\x80"])
def test_text_that_ends_within_a_character_is_an_invalid_payload(text):
    with pytest.raises(websocket.InvalidPayload, match="a text ends within a character") as error:
        parse(frame(TEXT, text))
    assert websocket.close_code(error.value) == CloseCode.INVALID_PAYLOAD


def test_binary_message_may_hold_any_bytes():
    assert parse(frame(BINARY, bytes(range(256)))) == [BinaryMessage(bytes(range(256)))]


# Limits


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"\x82\x8b" + MASK, 11),
        (b"\x82\xfe\x01\x00" + MASK, 256),
        (b"\x82\xff\x00\x00\x00\x00\x40\x00\x00\x00" + MASK, 1 << 30),
        (b"\x82\xff\x7f" + b"\xff" * 7 + MASK, (1 << 63) - 1),
        (frame(TEXT, b"123456", more=True) + b"\x80\x85" + MASK, 11),
    ],
)
def test_message_beyond_the_limit_is_refused_before_it_arrives(data, size):
    with pytest.raises(TooLarge, match=f"a message has {size} bytes, more than 10") as error:
        parse(data, max_message_size=10)
    assert websocket.close_code(error.value) == CloseCode.MESSAGE_TOO_BIG


def test_limit_is_for_each_message_and_not_for_control_frames():
    data = frame(TEXT, b"12345", more=True) + frame(PING, b"x" * 125) + frame(CONTINUATION, b"67890")
    assert len(parse(data * 3, max_message_size=10)) == 6


def test_fragments_have_a_limit_since_empty_ones_have_no_size():
    most = frame(TEXT, more=True) + frame(CONTINUATION, more=True) * (websocket.MAX_FRAGMENTS - 2)
    assert parse(most + frame(CONTINUATION)) == [TextMessage(b"")]
    with pytest.raises(TooLarge, match="a message has more than 131072 fragments"):
        parse(most + frame(CONTINUATION, more=True) + frame(CONTINUATION))


def test_idle_parser_is_tiny_and_stays_so():
    parser = Parser()
    for data in (frame(TEXT, b"x" * 1000), frame(BINARY, b"a", more=True), frame(CONTINUATION, b"b")):
        for byte in bytewise(data):
            parser.feed(byte)
            list(parser.events())
    # What is not None or shared by all parsers.
    own = [value for name in Parser.__slots__ if (value := getattr(parser, name)) not in (b"", None)]
    assert sys.getsizeof(parser) <= 100
    assert own == [websocket.FIRST_BYTES, False, websocket.MAX_MESSAGE_SIZE, 0]
    assert parser.pending_size == 0


def test_pending_size_is_what_a_client_makes_the_server_hold():
    parser = Parser()
    for data, size in [(b"\x02", 1), (b"\x8a" + MASK, 0), (b"12345", 5), (b"67890", 10), (b"\x89\x85", 12)]:
        parser.feed(data)
        assert list(parser.events()) == []
        assert parser.pending_size == size


# Compression

HELLO = bytes.fromhex("f2 48 cd c9 c9 07 00")


@pytest.mark.parametrize(
    "data",
    [
        # RFC 7692, section 7.2.3.1, in one frame and in two.
        frame(TEXT, HELLO, is_compressed=True),
        frame(TEXT, HELLO[:3], is_compressed=True, more=True) + frame(CONTINUATION, HELLO[3:]),
        # RSV1 says that a message is not compressed, too (section 6).
        frame(TEXT, b"Hello"),
    ],
)
def test_compressed_and_other_messages_may_alternate(data):
    twice = [TextMessage(b"Hello")] * 2
    assert parse(data * 2, deflate=Deflate()) == parse(*bytewise(data * 2), deflate=Deflate()) == twice


@pytest.mark.parametrize("first", [0x40, 0xC0, 0xC8, 0xC9, 0xCA, 0xE1, 0xF2])
def test_rsv1_is_only_on_the_first_frame_of_a_message(first):
    data = frame(TEXT, HELLO[:3], is_compressed=True, more=True) + bytes([first, 0x80]) + MASK
    with pytest.raises(ProtocolError, match=f"begins with {first:#04x}: it has a reserved bit"):
        parse(data, deflate=Deflate())


@pytest.mark.parametrize(
    "payload",
    [
        b"\x07",  # no kind of block
        bytes.fromhex("f2 00 11 00 00"),  # the window of the message before, section 7.2.3.2
        Deflate().compress(b"\xff"),
        Deflate().compress(b"\xe2\x82"),
    ],
)
def test_what_inflates_to_no_text_is_an_invalid_payload(payload):
    data = frame(TEXT, HELLO, is_compressed=True) + frame(TEXT, payload, is_compressed=True)
    expected = ([TextMessage(b"Hello")], CloseCode.INVALID_PAYLOAD)
    assert outcome(data, deflate=Deflate()) == outcome(*bytewise(data), deflate=Deflate()) == expected


def test_message_that_inflates_beyond_the_limit_is_refused():
    bomb = frame(BINARY, Deflate().compress(bytes(1001)), is_compressed=True)
    assert outcome(bomb, max_message_size=1000, deflate=Deflate()) == ([], CloseCode.MESSAGE_TOO_BIG)
    assert parse(bomb, max_message_size=1001, deflate=Deflate()) == [BinaryMessage(bytes(1001))]


def test_message_is_limited_in_its_compressed_size_too():
    blocks_of_nothing = frame(BINARY, b"\x00\x00\x00\xff\xff" * 21, is_compressed=True)
    assert outcome(blocks_of_nothing, max_message_size=100, deflate=Deflate())[1] == CloseCode.MESSAGE_TOO_BIG


# What a server sends


@pytest.mark.parametrize(
    ("encoded", "data"),
    [
        # RFC 6455, section 5.7.
        (websocket.encode_text(b"Hello"), "81 05 48656c6c6f"),
        (websocket.encode_frame(TEXT, b"Hel", is_final=False), "01 03 48656c"),
        (websocket.encode_frame(CONTINUATION, b"lo"), "80 02 6c6f"),
        (websocket.encode_ping(b"Hello"), "89 05 48656c6c6f"),
        (websocket.encode_pong(b"Hello"), "8a 05 48656c6c6f"),
        (websocket.encode_binary(bytes(256)), "82 7e 0100" + "00" * 256),
        (websocket.encode_binary(bytes(65536)), "82 7f 0000000000010000" + "00" * 65536),
        # RFC 7692, section 7.2.3.1.
        (websocket.encode_frame(TEXT, HELLO, is_compressed=True), "c1 07 f248cdc9c90700"),
        (websocket.encode_ping(), "89 00"),
        (websocket.encode_close(), "88 00"),
        (websocket.encode_close(CloseCode.GOING_AWAY), "88 02 03e9"),
        (websocket.encode_close(4000, "bye"), "88 05 0fa0 627965"),
    ],
)
def test_frames_are_encoded_as_in_the_specification(encoded, data):
    assert encoded == bytes.fromhex(data)


def test_short_message_is_not_compressed():
    short, long = b"x" * (MIN_COMPRESSED_SIZE - 1), b"x" * MIN_COMPRESSED_SIZE
    assert websocket.encode_text(short, Deflate()) == websocket.encode_text(short)
    assert len(websocket.encode_text(long, Deflate())) < 20


def test_message_that_gains_nothing_is_not_compressed():
    data = bytes(range(256)) * 2
    assert websocket.encode_binary(data[:256], Deflate()) == websocket.encode_binary(data[:256])
    assert len(websocket.encode_binary(data, Deflate())) < len(data)


def test_text_that_is_not_utf8_is_sent_as_one_that_is():
    assert websocket.encode_text(b"a\xffb") == websocket.encode_text("a\ufffdb".encode())


@pytest.mark.parametrize("reason", ["x" * 200, "ß" * 100, "x" + "ß" * 100, "€" * 100, "😀" * 100])
def test_long_reason_is_cut_between_characters(reason):
    payload = websocket.encode_close(1000, reason)[4:]
    assert 120 <= len(payload) <= 123
    assert reason.startswith(payload.decode())


def test_ping_has_no_more_than_125_bytes():
    with pytest.raises(ValueError, match="a control frame has 126 bytes, more than 125"):
        websocket.encode_ping(bytes(126))


# Properties

texts = st.text(max_size=40).map(str.encode)
event_strategy = st.one_of(
    st.builds(TextMessage, texts),
    st.builds(BinaryMessage, st.binary(max_size=300)),
    st.builds(Ping, st.binary(max_size=125)),
    st.builds(Pong, st.binary(max_size=125)),
)
closes = st.one_of(
    st.just(Close()),
    st.builds(Close, st.sampled_from([1000, 1011, 3000, 4999]), st.text(max_size=30)),
)


def encode(event: Event, deflate: Deflate | None = None) -> bytes:
    """Return what a server sends."""
    match event:
        case TextMessage(data):
            return websocket.encode_text(data, deflate)
        case BinaryMessage(data):
            return websocket.encode_binary(data, deflate)
        case Ping(payload):
            return websocket.encode_ping(payload)
        case Pong(payload):
            return websocket.encode_pong(payload)
        case Close(code, reason):
            return websocket.encode_close(code, reason)


@given(st.lists(event_strategy, max_size=6), closes)
def test_client_reads_the_events_that_were_sent(sent, close):
    client = connection.Connection(connection.CLIENT)
    client.receive_data(b"".join(encode(event) for event in (*sent, close)))
    received: list[Event] = []
    for event in client.events():
        match event:
            case events.TextMessage():
                received.append(TextMessage(event.data.encode()))
            case events.BytesMessage():
                received.append(BinaryMessage(bytes(event.data)))
            case events.Ping():
                received.append(Ping(bytes(event.payload)))
            case events.Pong():
                received.append(Pong(bytes(event.payload)))
            case events.CloseConnection():
                received.append(Close(event.code, event.reason or ""))
    assert received == [*sent, close]


@st.composite
def client_frames(draw: st.DrawFn) -> tuple[list[Event], bytes]:
    """Events, and the frames of a client that sends them: in fragments, compressed, or as they are."""
    expected = draw(st.lists(event_strategy, max_size=5))
    data = b""
    for event in expected:
        match event:
            case Ping(payload):
                data += frame(PING, payload)
            case Pong(payload):
                data += frame(PONG, payload)
            case TextMessage(payload) | BinaryMessage(payload):
                is_compressed = draw(st.booleans())
                if is_compressed:
                    payload = Deflate().compress(payload)
                *firsts, last = split(payload, draw(st.lists(st.integers(0), max_size=3)))
                opcode = TEXT if isinstance(event, TextMessage) else BINARY
                for part in firsts:
                    data += frame(opcode, part, more=True, is_compressed=is_compressed)
                    opcode, is_compressed = CONTINUATION, False
                data += frame(opcode, last, is_compressed=is_compressed)
    return expected, data


@given(client_frames(), st.lists(st.integers(0)))
def test_any_split_of_a_clients_frames_gives_its_events(case, cuts):
    expected, data = case
    assert parse(data, deflate=Deflate()) == expected
    assert parse(*split(data, cuts), deflate=Deflate()) == expected


# Bytes that look like frames more often than chance would have it.
frame_like = st.one_of(
    st.binary(max_size=8),
    st.builds(
        lambda first, payload: bytes([first, 0x80 | len(payload)]) + MASK + payload,
        st.sampled_from([0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0xC1, 0xC2, 0x41]),
        st.one_of(st.binary(max_size=20), st.just(bytes.fromhex("c5b2ecf4fefd21"))),  # HELLO, masked
    ),
)


@given(st.lists(frame_like, max_size=8).map(b"".join), st.lists(st.integers(0)), st.booleans())
def test_garbage_gives_events_or_a_protocol_error_however_it_is_split(data, cuts, is_compressed):
    options = {"max_message_size": 30, "deflate": Deflate() if is_compressed else None}
    assert outcome(data, **options) == outcome(*split(data, cuts), **options)
