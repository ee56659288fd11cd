"""A site whose receivers note what they handle.

Environment: BUS, DATABASE (path of an SQLite file), NOTES (path of the file with a line for each
message) and GATE (path of a FIFO).
"""

from __future__ import annotations

import os

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}}
INSTALLED_APPS = ["django_realtime", "tests.e2e.consuming"]
REALTIME = {"BUS": os.environ["BUS"], "CHANNELS": {"*": {"history": 5000}}}
SECRET_KEY = "for this test only"
USE_TZ = True
