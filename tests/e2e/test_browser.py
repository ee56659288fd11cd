"""The demo site in Chromium, under each server that a developer meets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from playwright.sync_api import Page, Response, expect

import django_realtime as realtime
from tests.clients import SSEClient, http_get
from tests.servers import ROOT, GunicornServer, free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

TIMEOUT = 30_000  # milliseconds, in which an EventSource also comes back from a refusal


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Playwright's own 5 seconds are too short for a busy machine."""
    expect.set_options(timeout=TIMEOUT)
    yield
    expect.set_options(timeout=None)


def open_news(page: Page, url: str) -> None:
    """Open the news page and wait until its stream is open."""
    page.goto(url + "/news")
    expect(page.locator("#state")).to_have_text("open")


def expect_messages(page: Page, *texts: str) -> None:
    """Expect exactly these messages on the news page, the newest first."""
    expect(page.locator("#messages li span")).to_have_text(list(texts))


def rt_publish(server: GunicornServer, *arguments: str, stdin: str | None = None) -> None:
    done = server.manage("rt_publish", *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr


def is_accepted(response: Response) -> bool:
    """A refusal is complete and has a length, a stream has none."""
    return "/events/news" in response.url and "content-length" not in response.headers


# Under gunicorn, as the demo runs it.


def test_news_shows_what_the_command_publishes(gunicorn, page: Page):
    server = gunicorn()
    open_news(page, server.url(""))

    rt_publish(server, "lotofnews", "hello")
    rt_publish(server, "lotofnews", "-", stdin="one\ntwo\n")

    expect_messages(page, "two", "one", "hello")


def test_news_shows_a_message_of_several_lines_with_its_line_breaks(gunicorn, page: Page):
    server = gunicorn()
    open_news(page, server.url(""))

    rt_publish(server, "lotofnews", "one\ntwo\r\n\r\nfour <b>lines</b>")

    message = page.locator("#messages li span")
    expect(message).to_have_js_property("innerText", "one\ntwo\n\nfour <b>lines</b>")


def test_news_shows_what_the_form_publishes_in_every_window(gunicorn, page: Page):
    server = gunicorn()
    other = page.context.new_page()
    open_news(other, server.url(""))
    open_news(page, server.url(""))

    page.get_by_label("Message").fill("from the form,\nin two lines")
    page.get_by_role("button", name="Publish").click()

    for window in (page, other):
        message = window.locator("#messages li span")
        expect(message).to_have_js_property("innerText", "from the form,\nin two lines")
    expect(page.get_by_label("Message")).to_have_value("")


def test_news_shows_what_redis_cli_publishes(gunicorn, redis_server, page: Page):
    server = gunicorn(env={"REALTIME_BUS": redis_server.url})
    open_news(page, server.url(""))

    assert redis_server.cli("publish", "lotofnews", "hello") == "1"
    expect_messages(page, "hello")
    rt_publish(server, "lotofnews", "and by the command")

    expect_messages(page, "and by the command", "hello")


def test_publisher_moves_all_five_columns(gunicorn, page: Page, tmp_path: Path):
    # Other runs of the demo in this checkout must not hold the publisher's key.
    (tmp_path / "demo_settings.py").write_text(
        "from testproject.settings import *\n"
        f"CACHES = {{'default': {{**CACHES['default'], 'LOCATION': {str(tmp_path / 'cache')!r}}}}}\n"
    )
    server = gunicorn(env={"DJANGO_SETTINGS_MODULE": "demo_settings"}, python_path=tmp_path)
    page.goto(server.url("/channels"))
    expect(page.locator("h2.state.open")).to_have_count(5)

    page.get_by_role("button", name="Start publishing").click()

    for number in range(5):
        column = page.locator("[data-events]").nth(number)
        expect(column.locator("li").first).to_contain_text("°C")
    page.get_by_role("button", name="Stop publishing").click()
    expect(page.get_by_role("button", name="Start publishing")).to_be_visible()


def test_refused_page_is_connected_by_itself_when_a_place_falls_free(gunicorn, page: Page):
    server = gunicorn(env={"GUNICORN_REALTIME_CONNECTIONS": "1"})
    holder = SSEClient(server.address, "/events/news")
    page.goto(server.url("/news"))
    server.wait_for_log("was refused: the hub holds 1 connections")

    with page.expect_response(is_accepted, timeout=TIMEOUT):
        holder.close()
    rt_publish(server, "lotofnews", "at last")

    expect_messages(page, "at last")


def test_page_comes_back_when_the_hub_is_killed(gunicorn, page: Page):
    server = gunicorn()
    open_news(page, server.url(""))
    rt_publish(server, "lotofnews", "before")
    expect_messages(page, "before")
    (hub,) = server.hub_pids()

    with page.expect_response(is_accepted, timeout=TIMEOUT):
        os.kill(hub, signal.SIGKILL)
    # The local bus went with it, and what it had kept.
    expect_messages(page, "Some messages may be missing here.", "before")
    rt_publish(server, "lotofnews", "after")

    expect_messages(page, "after", "Some messages may be missing here.", "before")


class Demo(GunicornServer):
    """What `make demo` runs: a script that becomes gunicorn."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.command = ["scripts/demo", sys.prefix, str(free_port())]

    @property
    def pid(self) -> int:
        return self.process.pid


def test_demo_is_where_it_says_and_ends_by_ctrl_c(page: Page, tmp_path: Path):
    with Demo(tmp_path) as demo:
        printed = demo.wait_for_log(r"^    (http://127.0.0.1:\d+)/$")
        open_news(page, printed[1])
        rt_publish(demo, "lotofnews", "hello")
        expect_messages(page, "hello")

        demo.signal(signal.SIGINT, group=True)
        assert demo.wait() == 0
        demo.wait_gone()
    expect(page.locator("#state")).to_have_text("connecting")


# Under the development servers.


@pytest.fixture
def runserver(bus_directory) -> Iterator[tuple[str, dict[str, str]]]:
    """`manage.py runserver` as a process: its URL, and the environment for `manage.py` beside it."""
    port = free_port()
    env = {**os.environ, "REALTIME_BUS": f"local:{bus_directory}"}
    command = [sys.executable, "manage.py", "runserver", f"127.0.0.1:{port}", "--noreload"]

    def answers() -> bool:
        with suppress(OSError):
            return http_get(port, "/ping").text == "pong"
        return False

    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(answers, what="an answer of runserver")
            yield f"http://127.0.0.1:{port}", env
        finally:
            process.terminate()


def test_news_under_runserver_shows_what_another_process_publishes(runserver, page: Page):
    url, env = runserver
    open_news(page, url)

    command = [sys.executable, "manage.py", "rt_publish", "lotofnews", "one\ntwo"]
    subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=True)

    expect(page.locator("#messages li span")).to_have_js_property("innerText", "one\ntwo")


class LiveServerTests(StaticLiveServerTestCase):
    """A site's own browser test, as Django's documentation writes it."""

    @pytest.fixture(autouse=True)
    def _surroundings(self, settings, bus_directory, page: Page) -> None:
        settings.REALTIME = {"BUS": f"local:{bus_directory}"}
        self.page = page

    def test_news_shows_what_the_test_publishes(self):
        open_news(self.page, self.live_server_url)

        realtime.publish("lotofnews", "hello")

        expect_messages(self.page, "hello")
