from __future__ import annotations

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.presence import Presence
from gunicorn_realtime.errors import ProtocolError
from gunicorn_realtime.plumbing.frames import Frame, Kind
from gunicorn_realtime.plumbing.handover import HandBack, Handover, announced_bus, announcement
from gunicorn_realtime.plumbing.offload import Events, Offload

addresses = st.one_of(
    st.tuples(st.text(), st.integers(0, 65535)),
    st.tuples(st.text(), st.integers(0, 65535), st.integers(0), st.integers(0)),  # IPv6
    st.text(),  # a Unix socket's path
)
buses = st.builds(BusAddress, st.text(), st.text())
offloads = st.builds(
    Offload,
    st.text(),
    st.lists(st.builds(Channel, st.text())).map(tuple),
    buses,
    st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.none()),
    events=st.none() | st.builds(Events, st.lists(st.text()).map(tuple), st.floats(0, 1e6), st.text()),
    presence=st.none() | st.builds(Presence, st.text(), st.just("ada"), st.integers(0), st.just(60.0)),
)
handovers = st.builds(
    Handover,
    offloads,
    addresses,
    addresses,
    st.booleans(),
    st.booleans(),
    st.binary(),
    st.binary(),
    st.text(),
)
hand_backs = st.builds(HandBack, addresses, addresses, st.binary())


def cross(frame: Frame) -> Frame:
    return Frame.decode(frame.encode())


@given(handovers)
def test_handover_arrives_as_it_was_sent(handover):
    assert Handover.from_frame(cross(handover.frame())) == handover


@given(hand_backs)
def test_hand_back_arrives_as_it_was_sent(hand_back):
    assert HandBack.from_frame(cross(hand_back.frame())) == hand_back


@given(buses)
def test_announcement_arrives_as_it_was_sent(bus):
    assert announced_bus(cross(announcement(bus))) == bus


def test_bare_name_is_a_channel_without_history():
    offload = Offload("sse", ("news",), BusAddress("local:/x"))
    handover = Handover(offload, "", "", True, False, b"", b"")

    arrived = Handover.from_frame(cross(handover.frame()))

    assert arrived.offload.channels == (Channel("news"),)


def test_presence_crosses_with_the_channel_s_rules():
    offload = Offload("sse", (), BusAddress("local:/x"), presence=Presence("room", "ada", 100, 60.0))

    arrived = Handover.from_frame(cross(Handover(offload, "", "", True, False, b"", b"").frame()))

    assert astuple(arrived.offload.presence) == ("room", "ada", 100, 60.0)


@pytest.mark.parametrize(
    "read",
    [Handover.from_frame, HandBack.from_frame, announced_bus],
    ids=["handover", "hand-back", "announcement"],
)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bus": None, "client": [], "engine": "sse", "channels": ["news"]},
        {"bus": ["a", "b", "c"], "server": []},
        {"channels": 5, "engine": "sse", "bus": 5},
    ],
)
def test_frame_that_lacks_something_is_a_protocol_error(read, fields):
    with pytest.raises(ProtocolError, match="lacks"):
        read(Frame(Kind.HANDOVER, fields))
