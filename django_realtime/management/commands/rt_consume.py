from __future__ import annotations

import re
import signal
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils.module_loading import autodiscover_modules

from django_realtime.checks import TAG
from django_realtime.conf import conf
from django_realtime.receivers import received_channels, receivers
from gunicorn_realtime.bus.consumer import Consumer
from gunicorn_realtime.errors import BusUnavailable

# A part of a key on the bus.
NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)


class Command(BaseCommand):
    help = "Call the site's receivers with what is published to their channels, until SIGTERM or Ctrl-C."
    requires_system_checks = (TAG,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("channel", nargs="*", help="handle only this channel's messages; default: all")
        parser.add_argument(
            "--name",
            type=_name,
            default="default",
            help="of the cursor on the bus; each process has one of its own (default: %(default)s)",
        )
        parser.add_argument(
            "--once", action="store_true", help="handle what there is since the last time, and exit"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        autodiscover_modules("receivers")
        channels = _chosen(options["channel"])
        name = options["name"]

        def say(text: str) -> None:
            if options["verbosity"]:
                self.stdout.write(text)
                self.stdout.flush()

        consuming = f"Consuming {', '.join(channels)} as {name}"
        consumer = Consumer(conf.bus, name, receivers(channels))
        with _stopped_by_signals(consumer):
            if options["once"]:
                say(f"{consuming}, once.")
                _run_once(consumer)
            else:
                consumer.run(lambda: say(f"{consuming}. Ctrl-C ends it."))


def _chosen(wanted: list[str]) -> list[str]:
    """Return the channels to handle: those that are wanted, or all that have receivers."""
    known = received_channels()
    if not known:
        raise CommandError(
            "There are no receivers: put functions with @realtime.receiver into the module "
            '"receivers" of an installed app.'
        )
    if unknown := [channel for channel in wanted if channel not in known]:
        raise CommandError(f"No receiver of {', '.join(unknown)}: there are some of {', '.join(known)}.")
    return list(dict.fromkeys(wanted)) or known


def _run_once(consumer: Consumer) -> None:
    try:
        consumer.run_once()
    except BusUnavailable as exc:
        raise CommandError(str(exc)) from exc


@contextmanager
def _stopped_by_signals(consumer: Consumer) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one does not wait
        consumer.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ArgumentTypeError("1 to 100 letters, digits and -_.")
    return text
