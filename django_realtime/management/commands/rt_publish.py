from __future__ import annotations

import json
import math
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper

from django_realtime.checks import TAG
from django_realtime.conf import conf
from django_realtime.publishing import publish, publisher
from gunicorn_realtime.errors import BusUnavailable, RealtimeError

# Often enough to look alive, seldom enough to cost nothing.
PROGRESS_INTERVAL = 0.1  # seconds


class Command(BaseCommand):
    help = "Publish messages to a channel: the argument, a file, or each line of standard input."
    requires_system_checks = (TAG,)

    def create_parser(self, *args: Any, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(*args, **kwargs)
        # `rt_publish news --event x DATA`: before Python 3.12 plain parsing takes DATA for absent there.
        parser.parse_args = parser.parse_intermixed_args  # type: ignore[method-assign]
        return parser

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("channel", help="the channel's name, without the site's prefix")
        parser.add_argument("data", nargs="?", help='the message; "-" or nothing: a message a line of input')
        parser.add_argument("--event", metavar="NAME", help="the event's name")
        parser.add_argument(
            "--json", action="store_true", help="refuse what is not JSON, and publish it compactly"
        )
        parser.add_argument(
            "--file", type=Path, metavar="PATH", help="publish this file's bytes as one message"
        )
        parser.add_argument("--rate", type=_rate, metavar="N", help="publish at most N messages a second")

    def handle(self, *args: Any, **options: Any) -> None:
        self.channel: str = options["channel"]
        self.published = 0
        hubs = _count_hubs()
        progress = _Progress(self.stderr, shown=options["verbosity"] > 0 and self.stderr.isatty())
        try:
            for data in _paced(_messages(options), options["rate"]):
                publish(self.channel, data, event=options["event"], immediately=True)
                self.published += 1
                progress.show(self.published)
        except (RealtimeError, OSError, TypeError, ValueError) as exc:
            self._fail(str(exc))
        except KeyboardInterrupt:
            self._fail("interrupted", returncode=130)
        finally:
            progress.clear()
        if options["verbosity"]:
            self.stdout.write(f"{self._summary()} ({_number(hubs, 'hub')} listening)")

    def _fail(self, reason: str, returncode: int = 1) -> NoReturn:
        done = f"{self._summary()}, then: " if self.published else ""
        raise CommandError(done + reason, returncode=returncode)

    def _summary(self) -> str:
        return f"Published {_number(self.published, 'message')} to {self.channel}"


class _Progress:
    """A count that is written over and over on one line of a terminal."""

    def __init__(self, terminal: OutputWrapper, shown: bool) -> None:
        self._terminal = terminal
        self._shown = shown
        self._due = time.monotonic() + PROGRESS_INTERVAL

    def show(self, published: int) -> None:
        if self._shown and time.monotonic() >= self._due:
            self._due = time.monotonic() + PROGRESS_INTERVAL
            self._write(f"\r{_number(published, 'message')} …")

    def clear(self) -> None:
        if self._shown:
            self._write("\r\033[K")

    def _write(self, text: str) -> None:
        self._terminal.write(text, style_func=str, ending="")
        self._terminal.flush()


def _count_hubs() -> int:
    bus = conf.bus
    try:
        hubs = publisher(bus).count_hubs()
    except BusUnavailable as exc:
        if bus.is_local:
            raise CommandError(
                f"No hub or development server of this project is running, so nobody can receive: {exc}"
            ) from exc
        raise CommandError(f"Nobody can receive: {exc}") from exc
    if hubs == 0:
        raise CommandError(f"No hub is connected to {bus.safe_url}, so nobody can receive.")
    return hubs


def _messages(options: dict[str, Any]) -> Iterator[Any]:
    for message in _sources(options["data"], options["file"]):
        yield _parse_json(message) if options["json"] else message


def _sources(data: str | None, file: Path | None) -> Iterator[str | bytes]:
    if file is not None:
        if data is not None:
            raise CommandError("Give DATA or --file, not both.")
        yield file.read_bytes()
    elif data in (None, "-"):
        for line in sys.stdin.buffer:
            yield line.removesuffix(b"\n").removesuffix(b"\r")
    else:
        yield data


def _parse_json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ValueError(f"not JSON: {exc}") from exc


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < math.inf:
        raise ArgumentTypeError("must be more than 0")
    return rate


def _paced(messages: Iterable[Any], rate: float | None) -> Iterator[Any]:
    """Yield `messages`, at most `rate` a second."""
    interval = 1 / rate if rate else 0.0
    due = 0.0
    for message in messages:
        time.sleep(max(0.0, due - time.monotonic()))
        due = max(due, time.monotonic()) + interval
        yield message


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
