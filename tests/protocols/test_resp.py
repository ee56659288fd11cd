from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.errors import ProtocolError, TooLarge
from gunicorn_realtime.protocols import resp


def parse(*reads: bytes, max_bulk_size: int = resp.MAX_BULK_SIZE) -> list[list[bytes]]:
    parser = resp.CommandParser(max_bulk_size)
    commands = []
    for data in reads:
        parser.feed(data)
        commands += parser.commands()
    return commands


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def encode_command(*arguments: bytes) -> bytes:
    return resp.encode_array(map(resp.encode_bulk_string, arguments))


# Bytes that look like RESP more often than chance would have it.
resp_like = st.lists(
    st.one_of(
        st.sampled_from(
            [b"*", b"$", b"\r\n", b"\n", b"0", b"1", b"2", b"-1", b'"', b" ", b"PING", b"*1\r\n$4\r\n"]
        ),
        st.binary(max_size=4),
    ),
    max_size=20,
).map(b"".join)


def test_command_is_an_array_of_bulk_strings():
    # The specification's own example, under "Sending commands to a Redis server".
    assert parse(b"*2\r\n$4\r\nLLEN\r\n$6\r\nmylist\r\n") == [[b"LLEN", b"mylist"]]


def test_arguments_may_hold_any_bytes():
    assert parse(b"*2\r\n$0\r\n\r\n$6\r\n\r\n\x00\xff*$\r\n") == [[b"", b"\r\n\x00\xff*$"]]


def test_commands_may_come_many_in_one_read():
    assert parse(b"PING\r\n*1\r\n$4\r\nPING\r\nQUIT\r\n*1\r\n$4") == [[b"PING"], [b"PING"], [b"QUIT"]]


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        (b"PING\r\n", [b"PING"]),
        (b"PING\n", [b"PING"]),
        (b"  publish   news hello\r\n", [b"publish", b"news", b"hello"]),
        (b"publish news 'hello world'\r\n", [b"publish", b"news", b"hello world"]),
        (b'publish news "say \\"hello\\""\r\n', [b"publish", b"news", b'say "hello"']),
        (b"publish news caf\xc3\xa9\r\n", [b"publish", b"news", b"caf\xc3\xa9"]),
        (b"$4\r\n", [b"$4"]),
    ],
)
def test_inline_command_is_a_line_of_words(line, arguments):
    assert parse(line) == [arguments]


@pytest.mark.parametrize("nothing", [b"\r\n", b"\n", b"   \r\n", b"*0\r\n", b"*-1\r\n"])
def test_empty_commands_are_passed_over(nothing):
    assert parse(nothing * 3 + b"PING\r\n") == [[b"PING"]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"*x\r\n", r"the length of an array is 'x\\r'"),
        (b"*\r\n", "the length of an array"),
        (b"*+1\r\n", "the length of an array"),
        (b"*1_0\r\n", "the length of an array"),
        (b"*-2\r\n", "the length of an array"),
        (b"*1\n", "the length of an array"),
        (b"*11111111111\r\n", "the length of an array"),
        (b"*1\r\nPING\r\n", r"expected '\$', got 'P'"),
        (b"*1\r\n:1\r\n", r"expected '\$', got ':'"),
        (b"*1\r\n\r\n", r"expected '\$'"),
        (b"*1\r\n$x\r\n", "the length of a bulk string"),
        (b"*1\r\n$-1\r\n", "null"),
        (b"*1\r\n$4\r\nPINGxx", "a bulk string of 4 bytes is not followed by CRLF"),
        (b'echo "x\r\n', "unbalanced quotes"),
    ],
)
def test_what_is_no_command_is_an_error(data, message):
    with pytest.raises(ProtocolError, match=message):
        parse(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"*1048577\r\n", "1048577 arguments, more than 1048576"),
        (b"*1\r\n$11\r\n", "an argument has 11 bytes, more than 10"),
        (b"x" * (64 * 1024 + 1), "a line has more than 65536 bytes"),
        (b"*" + b"1" * (64 * 1024), "a line has more than 65536 bytes"),
        (b"*1\r\n" + b"$" * (64 * 1024 + 1), "a line has more than 65536 bytes"),
    ],
)
def test_limits_are_checked_before_the_bytes_arrive(data, message):
    with pytest.raises(TooLarge, match=message):
        parse(data, max_bulk_size=10)


def test_line_of_the_limit_is_taken_however_it_arrives():
    line = b"x" * resp.MAX_LINE_SIZE
    assert parse(line + b"\n") == parse(line, b"\n") == [[line]]


def test_arguments_together_have_a_limit():
    count = resp.MAX_COMMAND_SIZE // resp.MAX_BULK_SIZE
    argument = resp.encode_bulk_string(bytes(resp.MAX_BULK_SIZE))
    with pytest.raises(TooLarge, match="more than 67108864 bytes"):
        parse(b"*%d\r\n" % (count + 1), *[argument] * count, b"$1\r\n")


def test_limit_of_the_arguments_is_for_each_command():
    count = resp.MAX_COMMAND_SIZE // resp.MAX_BULK_SIZE
    argument = resp.encode_bulk_string(bytes(resp.MAX_BULK_SIZE))
    parser = resp.CommandParser()
    for _ in range(count + 1):
        parser.feed(b"*1\r\n" + argument)
        assert len(list(parser.commands())) == 1


def test_large_argument_in_small_pieces_is_not_scanned_again_for_each():
    # That would outlast the time that a test may take.
    size = 16 * 1024 * 1024
    parser = resp.CommandParser(size)
    parser.feed(b"*1\r\n$%d\r\n" % size)
    for _ in range(size // 256):
        parser.feed(bytes(256))
        assert not list(parser.commands())
    parser.feed(b"\r\n")
    assert list(parser.commands()) == [[bytes(size)]]


@given(
    st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5), max_size=5), st.lists(st.integers(0))
)
def test_any_split_of_encoded_commands_gives_them_back(commands, cuts):
    data = b"".join(encode_command(*command) for command in commands)
    assert parse(*split(data, cuts)) == commands


@given(st.lists(st.one_of(resp_like, st.binary()), max_size=3).map(b"".join), st.lists(st.integers(0)))
def test_garbage_gives_commands_or_a_protocol_error_however_it_is_split(data, cuts):
    def outcome(*reads: bytes) -> object:
        parser = resp.CommandParser(max_bulk_size=100)
        commands = []
        try:
            for read in reads:
                parser.feed(read)
                commands.extend(parser.commands())
        except ProtocolError as exc:
            return commands, str(exc)
        return commands

    assert outcome(data) == outcome(*split(data, cuts))


@pytest.mark.parametrize(
    ("reply", "encoded"),
    [
        # The specification's own examples.
        (resp.encode_simple_string("OK"), b"+OK\r\n"),
        (resp.encode_error("ERR unknown command 'asdf'"), b"-ERR unknown command 'asdf'\r\n"),
        (resp.encode_integer(1000), b":1000\r\n"),
        (resp.encode_integer(-1), b":-1\r\n"),
        (resp.encode_bulk_string(b"hello"), b"$5\r\nhello\r\n"),
        (resp.encode_bulk_string(b""), b"$0\r\n\r\n"),
        (resp.NULL, b"$-1\r\n"),
        (resp.encode_array(()), b"*0\r\n"),
        (
            resp.encode_array(resp.encode_bulk_string(word) for word in (b"hello", b"world")),
            b"*2\r\n$5\r\nhello\r\n$5\r\nworld\r\n",
        ),
    ],
)
def test_replies_are_encoded_as_in_the_specification(reply, encoded):
    assert reply == encoded


def test_simple_strings_and_errors_stay_on_their_line():
    assert resp.encode_error("ERR 'a\r\n+OK\r\n'") == b"-ERR 'a +OK '\r\n"
    assert resp.encode_simple_string("a\nb") == b"+a b\r\n"
