"""A Django site with django-eventstream, its messages sent through Redis."""

from __future__ import annotations

import os

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import include, path

settings.configure(
    ALLOWED_HOSTS=["*"],
    EVENTSTREAM_REDIS={"host": "127.0.0.1", "port": int(os.environ["REDIS_PORT"])},
    INSTALLED_APPS=["django_eventstream"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for the bench only",
)
django.setup()

urlpatterns = [path("events/", include("django_eventstream.urls"), {"channels": ["bench"]})]
app = get_asgi_application()
