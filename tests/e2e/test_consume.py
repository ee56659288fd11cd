"""`manage.py rt_consume` as a process that ends in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path

import pytest

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing, Publisher
from gunicorn_realtime.bus.local import LocalBus
from tests.servers import ROOT, RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

TIMEOUT = 60.0


class Site:
    """The site in `consuming/`, its bus, and its consumers."""

    def __init__(self, bus: str, directory: Path) -> None:
        self.notes_path = directory / "notes"
        self.gate_path = directory / "gate"
        os.mkfifo(self.gate_path)
        self.log_path = directory / "consumer.log"
        self.processes: list[subprocess.Popen[str]] = []
        self.publisher = Publisher(BusAddress(bus), TIMEOUT)
        self._env = {
            **{name: value for name, value in os.environ.items() if name != "TZ"},  # Django sets it in here
            "DJANGO_SETTINGS_MODULE": "tests.e2e.consuming.settings",
            "BUS": bus,
            "DATABASE": str(directory / "site.sqlite3"),
            "NOTES": str(self.notes_path),
            "GATE": str(self.gate_path),
        }

    def publish(self, channel: str, *texts: str) -> None:
        rules = Channel(channel, 5000, 300.0)
        self.publisher.send([Outgoing(rules, text.encode()) for text in texts])

    def consume(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a consumer, and wait until it consumes."""
        with self.log_path.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "manage.py", "rt_consume", *arguments],
                cwd=ROOT,
                env=self._env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "Consuming gated, numbers, queries as default. Ctrl-C ends it.\n"
        return process

    def notes(self) -> list[str]:
        return self.notes_path.read_text().splitlines() if self.notes_path.exists() else []

    def wait_for_note(self, *texts: str) -> None:
        wait_until(lambda: set(texts) <= set(self.notes()), TIMEOUT, lambda: f"{texts}\n{self.log()}")

    def log(self) -> str:
        return self.log_path.read_text()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                end(process, signal.SIGKILL)
        self.publisher.close()


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    with process:
        process.send_signal(number)
        return process.wait(TIMEOUT)


@pytest.fixture(params=["local", "redis"])
def bus(request, bus_directory) -> Iterator[str]:
    if request.param == "redis":
        yield request.getfixturevalue("redis_server").url
        return
    with closing(LocalBus(bus_directory)) as local_bus:
        assert local_bus.try_own()
        yield f"local:{bus_directory}"


@pytest.fixture
def site(bus: str, tmp_path: Path) -> Iterator[Site]:
    with closing(Site(bus, tmp_path)) as site:
        yield site


def test_no_message_is_lost_when_consumers_are_killed_amid_a_thousand(site):
    texts = [str(number) for number in range(1000)]
    consumer = site.consume()
    site.publish("numbers", *texts)

    for reached in (1, 300, 600):
        site.wait_for_note(str(reached))
        assert end(consumer, signal.SIGKILL) == -signal.SIGKILL
        consumer = site.consume()
    site.wait_for_note(texts[-1])

    assert end(consumer) == 0
    # In order, and twice only what was being handled when one was killed.
    assert [text for text, _ in groupby(site.notes())] == texts
    assert len(site.notes()) <= 1000 + 3
    assert site.log() == ""


def test_no_message_is_lost_when_redis_is_killed_amid_a_thousand(tmp_path):
    texts = [str(number) for number in range(1000)]
    with (
        RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server,
        closing(Site(server.url, tmp_path)) as site,
    ):
        consumer = site.consume()
        site.publish("numbers", *texts[:500])
        site.wait_for_note("100")
        server.kill()
        server.start()
        site.publish("numbers", *texts[500:])
        site.wait_for_note(texts[-1])

        assert end(consumer) == 0
        assert site.notes() == texts
        assert "Messages are missing" not in site.log()


def test_message_whose_handler_is_killed_is_handled_again(site):
    consumer = site.consume()
    site.publish("gated", "one")
    site.wait_for_note("one begins")
    assert end(consumer, signal.SIGKILL) == -signal.SIGKILL

    consumer = site.consume()
    site.gate_path.write_text("go on")
    site.wait_for_note("one ends")

    assert end(consumer) == 0
    assert site.notes() == ["one begins", "one begins", "one ends"]


def test_sigterm_waits_for_the_handler_and_what_it_has_handled_is_not_handled_again(site):
    consumer = site.consume()
    site.publish("gated", "one")
    site.publish("numbers", "two")
    site.wait_for_note("one begins")

    consumer.send_signal(signal.SIGTERM)
    site.gate_path.write_text("go on")
    with consumer:
        assert consumer.wait(TIMEOUT) == 0
    assert site.notes() == ["one begins", "one ends"]

    consumer = site.consume()
    site.wait_for_note("two")
    assert end(consumer, signal.SIGINT) == 0
    assert site.notes() == ["one begins", "one ends", "two"]
    assert site.log() == ""


def test_database_connections_are_closed_between_messages(site):
    consumer = site.consume()
    site.publish("queries", "1", "2")
    site.publish("numbers", "last")
    site.wait_for_note("last")

    assert end(consumer) == 0
    assert site.notes() == ["new connection", "new connection", "last"]
