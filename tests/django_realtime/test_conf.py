from __future__ import annotations

import os

from django.test import override_settings

from django_realtime.conf import conf
from gunicorn_realtime.bus.address import BusAddress


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
