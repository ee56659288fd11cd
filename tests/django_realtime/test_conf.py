from __future__ import annotations

import os

import pytest
from django.test import override_settings

from django_realtime.conf import conf
from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.errors import ChannelNameError


def test_defaults(settings):
    del settings.REALTIME

    assert conf.prefix == ""
    assert conf.bus_timeout == 2.0
    assert conf.heartbeat == 25.0
    assert conf.retry == (1.0, 5.0)
    assert conf.max_message_size == 1024 * 1024


def test_values_are_read_at_use():
    with override_settings(REALTIME={"BUS": "redis://a", "PREFIX": "x:", "RETRY": [2, 3]}):
        assert conf.bus == BusAddress("redis://a", "x:")
        assert conf.retry == (2.0, 3.0)


def test_local_alone_is_a_directory_of_the_project(settings):
    settings.REALTIME = {"BUS": "local:"}
    here = conf.bus

    assert here.is_local
    assert os.path.isabs(here.directory)
    assert conf.bus == here


def test_local_alone_differs_with_prefix_and_project(settings):
    settings.REALTIME = {"BUS": "local:"}
    buses = {conf.bus.directory}
    settings.REALTIME = {"BUS": "local:", "PREFIX": "other:"}
    buses.add(conf.bus.directory)
    settings.BASE_DIR = "/elsewhere"
    buses.add(conf.bus.directory)

    assert len(buses) == 3


def test_local_with_a_directory_is_that_directory(settings):
    settings.REALTIME = {"BUS": "local:/run/site"}

    assert conf.bus.directory == "/run/site"


def test_a_channel_of_which_nothing_is_said_keeps_a_hundred_messages_for_five_minutes(settings):
    settings.REALTIME = {"PREFIX": "site:"}

    assert conf.channel("news") == Channel("site:news", 100, 300.0, SlowClient.RESUME)


def test_the_star_is_the_default_of_every_other_pattern(settings):
    settings.REALTIME = {"CHANNELS": {"news": {"history": 7}, "*": {"ttl": 60, "slow_client": "latest"}}}

    assert conf.channel("news") == Channel("news", 7, 60.0, SlowClient.LATEST)
    assert conf.channel("else") == Channel("else", 100, 60.0, SlowClient.LATEST)


def test_patterns_do_not_inherit_from_one_another(settings):
    settings.REALTIME = {"CHANNELS": {"room-*": {"ttl": 60}, "room-1*": {"history": 5}}}

    assert conf.channel("room-12") == Channel("room-12", 5, 300.0)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("room-7", "room-7"),
        ("room-[7]", "room-[7]"),  # its own name, though as a pattern it means room-7
        ("room-8", "room-?"),
        ("room-10", "room-1*"),
        ("room-20", "room-*"),
        ("Room-20", "*-20"),
        ("hall-2", "[gh]all-*"),
        ("Hall-2", "*"),
        ("big-hall", "*all"),
        ("rooms", "*"),
    ],
)
def test_the_most_specific_pattern_wins(settings, name, pattern):
    patterns = ["*", "*all", "*-20", "[gh]all-*", "room-*", "room-?", "room-1*", "room-[7]", "room-7"]
    histories = {pattern: number for number, pattern in enumerate(patterns)}
    # Of room-? and room-*, equal in both, the first stands: the setting's order decides last.
    order = ["room-?", *patterns]
    settings.REALTIME = {"CHANNELS": {key: {"history": histories[key]} for key in order}}

    assert conf.channel(name).history == histories[pattern]


def test_an_impossible_name_has_no_channel(settings):
    settings.REALTIME = {}

    with pytest.raises(ChannelNameError):
        conf.channel("rt:hubs")


def test_a_channel_is_made_once_until_the_settings_change(settings):
    settings.REALTIME = {"CHANNELS": {"*": {"history": 1}}}
    channel = conf.channel("news")
    assert conf.channel("news") is channel

    settings.REALTIME = {"CHANNELS": {"*": {"history": 2}}}

    assert conf.channel("news").history == 2
