"""The chats of the demo in Chromium: two visitors, each with a session of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing, Publisher
from tests.servers import ROOT, GunicornServer, RedisServer, free_port

pytestmark = pytest.mark.e2e

TIMEOUT = 60_000  # milliseconds, in which a page also comes back
CHAT = Channel("chat", 100, 300.0)


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Playwright's own 5 seconds are too short for a busy machine."""
    expect.set_options(timeout=TIMEOUT)
    yield
    expect.set_options(timeout=None)


@pytest.fixture
def ada(page: Page) -> Page:
    return page


@pytest.fixture
def bob(chromium: Browser) -> Iterator[Page]:
    with chromium.new_context() as context:
        yield context.new_page()


def join(page: Page, server: GunicornServer, name: str) -> None:
    page.goto(server.url("/chat"))
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Join").click()
    expect(page.locator("#state")).to_have_text("open")


def say(page: Page, text: str) -> None:
    expect(page.locator("#state")).to_have_text("open")
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


def said(page: Page) -> Locator:
    """What the page shows, but for its own notices."""
    return page.locator("#messages li span:not(.faint)")


def expect_said(pages: tuple[Page, ...], *texts: str) -> None:
    """Expect exactly these messages in each page; the page has the newest first."""
    for page in pages:
        expect(said(page)).to_have_text(list(reversed(texts)))


@contextmanager
def reconnecting(*pages: Page) -> Iterator[None]:
    """Leave when each page has opened another WebSocket."""
    with ExitStack() as stack:
        for page in pages:
            stack.enter_context(page.expect_websocket(timeout=TIMEOUT))
        yield
    for page in pages:
        expect(page.locator("#state")).to_have_text("open")


@pytest.fixture
def publish(redis_server: RedisServer) -> Iterator[Callable[[str], object]]:
    """Publish to the chat, whether or not there is a hub."""
    publisher = Publisher(BusAddress(redis_server.url))
    yield lambda text: publisher.send([Outgoing(CHAT, text.encode())])
    publisher.close()


# The chat.


def test_each_visitor_reads_what_both_write_in_one_order(gunicorn, ada: Page, bob: Page):
    server = gunicorn()
    join(ada, server, "Ada")
    join(bob, server, "Bob")

    say(ada, "hello")
    expect_said((ada, bob), "Ada: hello")
    say(bob, "good morning")
    expect_said((ada, bob), "Ada: hello", "Bob: good morning")
    say(ada, "Bob: I am <b>Ada</b> {still}")

    expect_said((ada, bob), "Ada: hello", "Bob: good morning", "Ada: Bob: I am <b>Ada</b> {still}")


def test_messages_sent_in_a_row_keep_their_order(gunicorn, ada: Page, bob: Page):
    server = gunicorn()
    join(ada, server, "Ada")
    join(bob, server, "Bob")

    for number in range(20):
        say(ada, str(number))

    expect_said((ada, bob), *(f"Ada: {number}" for number in range(20)))


def test_a_visitor_who_leaves_may_come_back_by_another_name(gunicorn, ada: Page, bob: Page):
    server = gunicorn()
    join(ada, server, "Ada")
    join(bob, server, "Bob")

    ada.get_by_role("button", name="Leave").click()
    expect(ada.get_by_label("Your name")).to_be_visible()
    join(ada, server, "Augusta")
    say(ada, "hello")

    expect_said((ada, bob), "Augusta: hello")


def test_each_message_is_shown_once_though_hub_and_server_are_killed(
    gunicorn, redis_server, publish, ada: Page, bob: Page
):
    options = {"bind": f"127.0.0.1:{free_port()}", "env": {"REALTIME_BUS": redis_server.url}}
    server = gunicorn(**options)
    join(ada, server, "Ada")
    join(bob, server, "Bob")
    say(ada, "one")
    expect_said((ada, bob), "Ada: one")

    with reconnecting(ada, bob):
        (hub,) = server.hub_pids()
        os.kill(hub, signal.SIGKILL)
        publish("while the hub was dead")
    say(bob, "two")
    with reconnecting(ada, bob):
        server.stop()
        publish("while the server was away")
        gunicorn(**options)
    say(ada, "three")

    expect_said(
        (ada, bob),
        "Ada: one",
        "while the hub was dead",
        "Bob: two",
        "while the server was away",
        "Ada: three",
    )


def test_page_says_that_something_may_be_missing_when_the_bus_has_lost_its_memory(gunicorn, ada: Page):
    server = gunicorn()
    join(ada, server, "Ada")
    say(ada, "before")
    expect_said((ada,), "Ada: before")

    with reconnecting(ada):
        (hub,) = server.hub_pids()
        os.kill(hub, signal.SIGKILL)  # the local bus goes with it
    say(ada, "after")

    shown = ada.locator("#messages li span")
    expect(shown).to_have_text(["Ada: after", "Some messages may be missing here.", "Ada: before"])


# The rooms.


def test_room_is_handled_in_django_and_answers_one_visitor_alone(gunicorn, ada: Page, bob: Page):
    server = gunicorn("testproject.wsgi", "-w", "2")
    for page, name in ((ada, "Ada"), (bob, "Bob")):
        join(page, server, name)
        page.goto(server.url("/rooms/kitchen"))
        expect(page.locator("#members")).to_have_text("Ada" if name == "Ada" else "Ada, Bob")
    expect(ada.locator("#members")).to_have_text("Ada, Bob")
    say(ada, "hello")
    expect(said(bob).first).to_have_text("Ada: hello")

    say(ada, "/roll")
    say(ada, "/roll")
    expect(ada.locator("#messages li span.faint").first).to_have_text(
        re.compile(r"You roll a \d, roll number 2\.")
    )
    bob.goto(server.url("/rooms/lobby"))
    say(bob, "somewhere else")

    expect(said(bob).first).to_have_text("Bob: somewhere else")
    expect_said((ada,), "Ada: hello")
    expect(ada.locator("#members")).to_have_text("Ada")


# The inverted chat.


@pytest.fixture
def consume(gunicorn) -> Iterator[Callable[[GunicornServer], None]]:
    """Start `manage.py rt_consume` beside a server and wait until it consumes."""
    processes: list[subprocess.Popen[str]] = []

    def start(server: GunicornServer) -> None:
        command = [sys.executable, "manage.py", "rt_consume"]
        process = subprocess.Popen(command, cwd=ROOT, env=server.env, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout
        assert process.stdout.readline() == "Consuming inverted-in as default. Ctrl-C ends it.\n"

    yield start
    for process in processes:
        process.send_signal(signal.SIGINT)
        with process:
            assert process.wait(30) == 0


def test_inverted_chat_shows_what_was_written_turned_around(gunicorn, consume, ada: Page, bob: Page):
    server = gunicorn()
    consume(server)
    for visitor in (ada, bob):
        visitor.goto(server.url("/inverted"))

    say(ada, "hello")
    expect_said((ada, bob), "olleh")
    say(bob, "drawer äöü 日本")

    expect_said((ada, bob), "olleh", "本日 üöä reward")


def test_inverted_chat_shows_nothing_that_did_not_come_by_the_other_channel(gunicorn, ada: Page):
    server = gunicorn()
    ada.goto(server.url("/inverted"))
    say(ada, "hello")

    done = server.manage("rt_publish", "inverted-out", "published by itself")

    assert done.returncode == 0, done.stderr
    expect_said((ada,), "published by itself")
