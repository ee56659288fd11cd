"""History in Chromium: its EventSource returns with the last id, whatever was killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, Response, expect

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing, Publisher
from tests.servers import free_port

pytestmark = pytest.mark.e2e

TIMEOUT = 60_000  # milliseconds
NEWS = Channel("lotofnews", 1000, 300.0)  # ten times what the demo keeps, for a slow machine


@contextmanager
def numbers(url: str) -> Iterator[list[str]]:
    """Publish 0, 1, 2 ... to the news, ten a second, in a thread."""
    publisher = Publisher(BusAddress(url))
    published: list[str] = []
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.1):
            publisher.send([Outgoing(NEWS, str(len(published)).encode())])
            published.append(str(len(published)))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield published
    finally:
        stop.set()
        thread.join()
        publisher.close()


def is_stream(response: Response) -> bool:
    return "/events/news" in response.url and "content-length" not in response.headers


def test_page_shows_each_message_once_though_hub_and_site_are_killed(gunicorn, redis_server, page: Page):
    options = {
        "bind": f"127.0.0.1:{free_port()}",
        "env": {"REALTIME_BUS": redis_server.url},
    }
    server = gunicorn(**options)
    page.goto(server.url("/news"))
    expect(page.locator("#state")).to_have_text("open", timeout=TIMEOUT)
    shown = page.locator("#messages li span")

    with numbers(redis_server.url) as published:
        expect(shown.filter(has_text="3")).not_to_have_count(0, timeout=TIMEOUT)
        (hub,) = server.hub_pids()
        with page.expect_response(is_stream, timeout=TIMEOUT):
            os.kill(hub, signal.SIGKILL)
        with page.expect_response(is_stream, timeout=TIMEOUT):
            server.stop()
            gunicorn(**options)
    expected = published[::-1]  # the newest is shown first

    expect(shown).to_have_text(expected, timeout=TIMEOUT)
