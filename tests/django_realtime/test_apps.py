from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

import django_realtime
import gunicorn_realtime
from django_realtime.apps import check_version
from django_realtime.conf import conf
from gunicorn_realtime.bus.address import BusAddress, announced


def test_both_packages_have_one_version():
    assert django_realtime.__version__ == gunicorn_realtime.__version__


def test_another_version_of_the_worker_is_refused(monkeypatch):
    monkeypatch.setattr(gunicorn_realtime, "__version__", "0.0.9")

    with pytest.raises(ImproperlyConfigured, match=r"gunicorn_realtime 0\.0\.9.*must be restarted"):
        check_version()


def test_the_bus_is_announced_at_start():
    assert announced() == BusAddress(announced().url, conf.prefix)


def test_import_needs_no_settings():
    code = "import django_realtime as realtime; realtime.sse('lotofnews'); realtime.sse('room-{room_id}')"

    subprocess.run([sys.executable, "-c", code], check=True, env={}, cwd=Path(__file__).parents[2])
