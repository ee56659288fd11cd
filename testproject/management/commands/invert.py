"""Between the two channels of the page "inverted": what comes in by one goes out by the other."""

from __future__ import annotations

import time
from contextlib import closing, suppress
from typing import Any

from django.core.management.base import BaseCommand

import django_realtime as realtime
from django_realtime.conf import conf
from gunicorn_realtime.bus.client import Received, Subscribed, Subscription
from gunicorn_realtime.bus.message import decode


class Command(BaseCommand):
    help = "Turn around each message of the channel inverted-in, and publish it to inverted-out."

    def handle(self, *args: Any, **options: Any) -> None:
        with suppress(KeyboardInterrupt):
            while True:
                try:
                    self.invert()
                except realtime.BusUnavailable as exc:
                    self.stderr.write(f"Trying again: {exc}")
                    time.sleep(1)

    def invert(self) -> None:
        with closing(Subscription(conf.bus)) as subscription:
            subscription.connect()
            subscription.subscribe([conf.channel("inverted-in").name])
            while True:
                match subscription.read():
                    case Subscribed():
                        self.stdout.write("Inverting. Ctrl-C ends it.")
                    case Received(channel, payload):
                        text = decode(channel, payload).data.decode("utf-8", "replace")
                        realtime.publish("inverted-out", text[::-1])
