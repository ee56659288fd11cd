from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_realtime.checks import TAG
from django_realtime.members import presence
from gunicorn_realtime.errors import RealtimeError


class Command(BaseCommand):
    help = "Print the members of a channel, one a line."
    requires_system_checks = (TAG,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("channel", help="the channel's name, without the site's prefix")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            members = presence(options["channel"])
        except RealtimeError as exc:
            raise CommandError(str(exc)) from exc
        for member in members:
            self.stdout.write(member)
