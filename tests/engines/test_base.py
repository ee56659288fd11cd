from __future__ import annotations

import pytest

from gunicorn_realtime.engines.base import NAMES, make_engine
from gunicorn_realtime.errors import ProtocolError


@pytest.mark.parametrize("name", NAMES)
def test_engine_is_found_by_its_name_and_needs_no_options(name):
    assert make_engine(name, {}).name == name


@pytest.mark.parametrize("name", ["", "gopher", "base", "..settings", "SSE"])
def test_unknown_engine_is_named_with_those_that_there_are(name):
    with pytest.raises(ProtocolError) as caught:
        make_engine(name, {})
    assert (
        str(caught.value)
        == f"there is no engine {name!r}; there are engineio, poll, socketio, sse, websocket"
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sse", {"heartbeat": "often"}),
        ("sse", {"heartbeat": None}),
        ("sse", {"heartbeat": 0}),
        ("sse", {"heartbeat": float("nan")}),
        ("sse", {"event": "two\nlines"}),
        ("sse", {"event": 5}),
        ("sse", {"retry": 5}),
        ("sse", {"retry": [1, 2, 3]}),
        ("poll", {"timeout": "long"}),
        ("websocket", {"heartbeat": "often"}),
        ("websocket", {"heartbeat": 0}),
        ("websocket", {"heartbeat": float("nan")}),
        ("websocket", {"max_size": None}),
        ("websocket", {"deflate": 15}),
        ("websocket", {"deflate": [9, 9]}),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_found_before_a_connection_has_them(name, options):
    with pytest.raises(ProtocolError, match=f"engine '{name}' cannot take the options"):
        make_engine(name, options)
