from __future__ import annotations

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = os.environ.get("DEBUG", "1") == "1"
SECRET_KEY = "for the demo only: nothing that is signed with it matters"
ALLOWED_HOSTS = [".localhost", "127.0.0.1", "[::1]"]

# "local:" needs no server. With Redis: REALTIME_BUS=redis://localhost:6379/0
REALTIME = {
    "BUS": os.environ.get("REALTIME_BUS", "local:"),
    # A value each: who comes gets the current one at once, who is slow gets the newest.
    "CHANNELS": {"channel_*": {"history": 1, "slow_client": "latest"}},
}

INSTALLED_APPS = [
    "django.contrib.staticfiles",
    "django_realtime",
    "testproject",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "testproject.urls"
WSGI_APPLICATION = "testproject.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "testproject.sqlite3"}}
# On disk, so that all workers share it: the publisher's button of the page "channels" needs that.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": BASE_DIR / "testproject.cache",
    }
}

# Who has joined the chat is in a signed cookie, which needs no table.
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

STATIC_URL = "static/"
TIME_ZONE = "UTC"
USE_TZ = True
