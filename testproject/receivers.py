"""Called by `manage.py rt_consume`, a process beside gunicorn."""

from __future__ import annotations

import django_realtime as realtime


@realtime.receiver("inverted-in")
def invert(message: realtime.ReceivedMessage) -> None:
    """Stand between the two channels of the page "inverted"."""
    realtime.publish("inverted-out", message.text[::-1])
