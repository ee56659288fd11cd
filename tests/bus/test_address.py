from __future__ import annotations

import pytest

from gunicorn_realtime.bus.address import BusAddress, announce, announced
from gunicorn_realtime.errors import ChannelNameError


def test_channel_has_the_site_s_prefix_on_the_bus():
    assert BusAddress("redis://h", prefix="site:").channel("news") == "site:news"
    assert BusAddress("redis://h").channel("größe") == "größe"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "a channel's name is empty"),
        ("rt:hubs", "channel 'rt:hubs': names that begin with 'rt:' are reserved"),
        ("a\nb", r"channel 'a\\nb' has control characters"),
        ("a\x00", "has control characters"),
        ("a\x7f", "has control characters"),
        ("\ud800", "is not valid Unicode"),
        ("é" * 101, "has 202 bytes, more than 200"),
    ],
)
def test_name_that_no_channel_can_have_is_refused(name, message):
    with pytest.raises(ChannelNameError, match=message):
        BusAddress("redis://h").channel(name)


def test_longest_name_is_taken():
    assert BusAddress("redis://h").channel("é" * 100) == "é" * 100


def test_hubs_channel_is_reserved():
    address = BusAddress("redis://h", prefix="site:")
    assert address.hubs_channel == "site:rt:hubs"
    with pytest.raises(ChannelNameError):
        address.channel(address.hubs_channel.removeprefix("site:"))


def test_keys_have_the_prefix_once_and_no_channel_can_be_one():
    address = BusAddress("redis://h", prefix="site:")
    assert address.clock_key == "site:rt:clock"
    assert address.log_key(address.channel("news")) == "site:rt:log:news"
    assert address.consumer_key("mail") == "site:rt:consumer:mail"
    with pytest.raises(ChannelNameError):
        address.channel("rt:log:news")


def test_local_address_names_a_directory():
    address = BusAddress("local:/run/site")
    assert address.is_local
    assert address.directory == "/run/site"
    assert not BusAddress("redis://h").is_local


@pytest.mark.parametrize(
    ("url", "safe_url"),
    [
        ("local:/run/site", "local:/run/site"),
        ("redis://h:6380/2", "redis://h:6380/2"),
        ("redis://h", "redis://h"),
        ("rediss://someone:secret@h:6380/2?password=secret", "rediss://h:6380/2"),
        ("redis://:secret@[::1]:6380", "redis://[::1]:6380"),
        ("unix://someone:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        # A password that should have been percent-encoded.
        ("redis://:sec/ret@h", "redis://"),
        ("redis://:sec#ret@h", "redis://"),
        ("redis://:sec?ret@h", "redis://"),
        ("redis://:sec@ret@h", "redis://h"),
        ("redis://:sec@re/t@h", "redis://"),
        ("redis://[secret@h", "redis://"),
    ],
)
def test_neither_logs_nor_tracebacks_show_a_password(url, safe_url):
    address = BusAddress(url, prefix="site:")
    assert address.safe_url == safe_url
    assert repr(address) == f"BusAddress({safe_url!r}, prefix='site:')"


def test_process_knows_the_bus_of_its_application(monkeypatch):
    monkeypatch.setattr("gunicorn_realtime.bus.address._announced", None)
    assert announced() is None
    announce(BusAddress("redis://h"))
    assert announced() == BusAddress("redis://h")
