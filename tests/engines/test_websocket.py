"""What the engine makes of messages; what becomes of connections is in `tests/hub/test_websocket.py`."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate

from gunicorn_realtime.bus.message import Message, Stamp
from gunicorn_realtime.engines.base import make_engine
from gunicorn_realtime.engines.websocket import WebSocket
from gunicorn_realtime.protocols.websocket_deflate import Deflate
from tests.engines.test_sse import messages

LONG = "long enough to be worth it, " * 40


def read_as_client(data: bytes, *, compresses: bool = False) -> list[Event]:
    """Return what wsproto reads of a server's frames."""
    extension = PerMessageDeflate()
    if compresses:
        extension.finalize(Deflate().response)
    connection = Connection(ConnectionType.CLIENT, [extension] if compresses else [])
    connection.receive_data(data)
    return list(connection.events())


def read_fields(data: bytes, **options: bool) -> dict[str, Any]:
    [event] = read_as_client(data, **options)
    assert isinstance(event, TextMessage)
    fields: dict[str, Any] = json.loads(event.data)
    return fields


@given(messages)
def test_message_is_its_data_text_as_text_and_bytes_as_bytes(message):
    text = read_as_client(WebSocket({}).encode(message))
    message.is_binary = True
    binary = read_as_client(WebSocket({}).encode(message))

    assert text == [TextMessage(message.data.decode("utf-8", "replace"))]
    assert binary == [BytesMessage(message.data)]


@given(messages)
def test_every_message_is_one_envelope_whatever_was_published(message):
    fields = read_fields(WebSocket({"envelope": "json"}).encode(message))

    assert fields == {
        "id": message.stamp.cursor if message.stamp else None,
        "channel": "news",
        "event": message.event and message.event.replace("\ud800", "?"),
        "data": message.data.decode("utf-8", "replace"),
    }


@given(st.binary())
def test_bytes_are_in_base64_within_an_envelope(data):
    message = Message("news", data, stamp=Stamp("e", 7, 6), is_binary=True)

    fields = read_fields(WebSocket({"envelope": "json"}).encode(message))

    assert base64.b64decode(fields.pop("data"), validate=True) == data
    assert fields == {"id": "e-7", "channel": "news", "event": None, "base64": True}


def test_channel_in_an_envelope_is_without_the_bus_s_prefix():
    engine = WebSocket({"envelope": "json", "prefix": "site:"})

    assert read_fields(engine.encode(Message("site:news", b"hello")))["channel"] == "news"


def test_heartbeat_is_a_ping_and_moves_the_cursor_of_who_has_one():
    with_envelope, without = WebSocket({"envelope": "json"}), WebSocket({})

    assert read_as_client(with_envelope.beat(None)) == [Ping()]
    assert read_as_client(without.beat("e-7")) == [Ping()]
    ping, cursor = read_as_client(with_envelope.beat("e-7"))
    assert ping == Ping()
    assert json.loads(cursor.data) == {"id": "e-7", "channel": None, "event": "cursor", "data": None}


def test_reset_names_the_channels_where_there_is_a_place_for_it():
    engine = WebSocket({"envelope": "json"})
    in_feed = Message("news", b"", reset="restarted")

    assert read_fields(engine.reset(["a", "b"], "expired", None)) == {
        "id": None,
        "channel": None,
        "event": "reset",
        "data": {"channels": ["a", "b"], "reason": "expired"},
    }
    fields = read_fields(engine.encode(in_feed))
    assert (fields["id"], fields["data"]) == (None, {"channels": ["news"], "reason": "restarted"})
    assert WebSocket({}).encode(in_feed) == b""


def test_goodbye_says_that_the_server_goes_away():
    assert read_as_client(WebSocket({}).goodbye()) == [CloseConnection(1001, "")]


@pytest.mark.parametrize("bits", [None, 9, 15])
@pytest.mark.parametrize("envelope", [None, "json"])
def test_long_messages_are_compressed_as_agreed(envelope, bits):
    message = Message("news", LONG.encode())
    engine = WebSocket({"envelope": envelope, "deflate": [bits]})

    data = engine.encode(message)

    assert len(data) < len(LONG) / 2
    [event] = read_as_client(data, compresses=True)
    assert event == TextMessage(
        LONG
        if envelope is None
        else json.dumps({"id": None, "channel": "news", "event": None, "data": LONG}, separators=(",", ":"))
    )


def test_engines_that_encode_alike_share_what_they_encode():
    engines = [make_engine("websocket", options) for options in ({}, {"heartbeat": 5}, {"max_size": 10})]
    others = [
        make_engine("websocket", options)
        for options in ({"envelope": "json"}, {"prefix": "a:"}, {"deflate": [None]}, {"deflate": [9]})
    ]

    assert len({engine.encoding for engine in engines}) == 1
    assert len({engine.encoding for engine in [*engines, *others]}) == 5
