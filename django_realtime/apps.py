from __future__ import annotations

from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished, request_started

import gunicorn_realtime

from . import __version__, checks, clock
from .conf import conf
from .inline import own_bus_of_development_server


class RealtimeConfig(AppConfig):
    name = "django_realtime"
    verbose_name = "Realtime"

    def ready(self) -> None:
        check_version()
        checks.register_all()
        request_started.connect(clock.note_request_started)
        request_finished.connect(clock.forget_request)
        request_started.connect(own_bus_of_development_server)
        if not checks.check_address():
            gunicorn_realtime.announce(conf.bus)


def check_version() -> None:
    """Refuse to run with another version of the server's half.

    Raises:
        ImproperlyConfigured: The two packages differ.
    """
    if gunicorn_realtime.__version__ != __version__:
        raise ImproperlyConfigured(
            f"django_realtime {__version__} runs with gunicorn_realtime {gunicorn_realtime.__version__}. "
            "After an upgrade gunicorn must be restarted: a reload (HUP) never imports gunicorn_realtime again."
        )
