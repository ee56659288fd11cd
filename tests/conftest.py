"""Fixtures for tests with real servers and a real browser; see `servers.py`, `clients.py` and `socketio/client.py`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers import GunicornServer, RedisServer
from tests.socketio.client import Node, install_packages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = (
    "--no-sandbox",  # it cannot have one when the tests run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)


class StartGunicorn:
    """Starts `GunicornServer`s, with its arguments but the directory."""

    def __init__(self, directory: Path) -> None:
        self.servers: list[GunicornServer] = []
        self._directory = directory

    def __call__(self, *arguments: str, **options: Any) -> GunicornServer:
        server = GunicornServer(self._directory, *arguments, **options)
        self.servers.append(server)
        return server.start()


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[StartGunicorn]:
    """Start servers; the test fails if one does not end, leaves a process or logs a traceback."""
    start = StartGunicorn(tmp_path)
    yield start
    problems = []
    for server in start.servers:
        print(f"--- log of {' '.join(server.command)}\n{server.log_tail()}")  # shown if the test has failed
        try:
            server.finish()
        except AssertionError as exc:
            problems.append(str(exc))
    if problems:
        pytest.fail("\n\n".join(problems), pytrace=False)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def socketio_packages() -> None:
    """The official Socket.IO clients, from npm."""
    install_packages()


@pytest.fixture
def node(socketio_packages: None) -> Iterator[Node]:
    """A process for JavaScript clients; the test fails if one of their callbacks does."""
    with Node() as node:
        yield node


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    assert path, "Chromium is not installed: `make test` installs it"
    with sync_playwright() as playwright, pytest.MonkeyPatch.context() as patch:
        # Playwright keeps an event loop in this thread, and Django would refuse every query of a test for it.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """An empty page in a profile of its own; the test fails if a script of the page does."""
    context = chromium.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors, f"uncaught in the page: {errors}"
