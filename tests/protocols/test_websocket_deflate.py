from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.protocols.websocket_deflate import SLICE_SIZE, TAIL, Deflate, Inflater


def inflate(*reads: bytes) -> bytes:
    inflater = Inflater()
    return b"".join(inflater.inflate(data, 1024 * 1024) for data in (*reads, TAIL))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        # RFC 7692, sections 7.2.3.1 and 7.2.3.3 to 7.2.3.6.
        ("f2 48 cd c9 c9 07 00", b"Hello"),
        ("00 05 00 fa ff 48 65 6c 6c 6f 00", b"Hello"),
        ("f3 48 cd c9 c9 07 00 00", b"Hello"),
        ("f2 48 05 00 00 00 ff ff ca c9 c9 07 00", b"Hello"),
        ("00", b""),
        # "The next DEFLATE block follows", behind one with BFINAL (section 7.2.1).
        ("f3 48 cd c9 c9 07 00f2 48 cd c9 c9 07 00", b"HelloHello"),
    ],
)
def test_messages_of_the_specification_are_inflated_however_they_arrive(payload, message):
    data = bytes.fromhex(payload)
    assert inflate(data) == message
    assert inflate(*(data[i : i + 1] for i in range(len(data)))) == message


def test_message_is_compressed_as_in_the_specification():
    assert Deflate().compress(b"Hello") == bytes.fromhex("f2 48 cd c9 c9 07 00")
    assert Deflate().compress(b"") == b"\0"


def test_window_of_an_earlier_message_is_not_known():
    # RFC 7692, section 7.2.3.2: what a client sends that ignores client_no_context_takeover.
    with pytest.raises(zlib.error, match="too far back"):
        inflate(bytes.fromhex("f2 00 11 00 00"))


@given(st.binary(max_size=2000), st.integers(1, 40), st.none() | st.integers(9, 15))
def test_what_was_compressed_is_inflated_again(data, times, bits):
    assert inflate(Deflate(bits).compress(data * times)) == data * times


@pytest.mark.parametrize("bits", range(9, 16))
def test_compressor_keeps_to_the_window_that_was_agreed(bits):
    data = random.Random(bits).randbytes(1 << bits) * 3 + b"x" * 100_000

    stream = zlib.decompressobj(-bits)

    assert stream.decompress(Deflate(bits).compress(data) + TAIL) == data


def test_equal_parameters_give_equal_bytes():
    data = b"one message to many clients " * 100
    assert Deflate(12).compress(data) == Deflate(12).compress(data)
    assert Deflate(None).compress(data) == Deflate(15).compress(data)


@pytest.mark.parametrize("max_size", [1, 100_000])
def test_bomb_is_inflated_as_far_as_the_limit(max_size):
    bomb = Deflate().compress(bytes(64 * 1024 * 1024))
    tracemalloc.start()
    try:
        assert Inflater().inflate(bomb, max_size) == bytes(max_size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024


def test_many_final_blocks_take_time_in_proportion():
    # That would outlast the time that a test may take, if each copied all that follow.
    final_block = b"\x03\x00"
    assert inflate(final_block * (SLICE_SIZE * 16)) == b""
