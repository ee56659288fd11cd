"""The demo's pages in a browser, served by Django's live test server."""

from __future__ import annotations

import json

import pytest
from django.urls import reverse
from playwright.sync_api import Page, Route, WebSocketRoute, expect

import django_realtime as realtime
from gunicorn_realtime.bus.message import CURSOR
from testproject.settings import REALTIME as DEMO


def test_index_links_to_the_examples(live_server, page: Page):
    page.goto(live_server.url)

    page.get_by_role("link", name="News").click()

    expect(page.get_by_role("heading", name="News")).to_be_visible()


def test_news_shows_what_is_published_with_its_line_breaks(live_server, page: Page):
    page.goto(live_server.url + reverse("news"))
    expect(page.locator("#state")).to_have_text("open")

    realtime.publish("lotofnews", "one\ntwo <b>lines</b>")

    message = page.locator("#messages li span")
    expect(message).to_have_js_property("textContent", "one\ntwo <b>lines</b>")
    expect(message).to_have_css("white-space", "pre-wrap")


def test_news_has_what_was_published_before_its_stream_was_open(live_server, page: Page):
    def publish_first(route: Route) -> None:
        realtime.publish("lotofnews", "between the page and its stream")
        route.continue_()

    page.route("**/events/news*", publish_first)
    page.goto(live_server.url + reverse("news"))

    expect(page.locator("#messages li span")).to_have_text(["between the page and its stream"])


def test_news_says_that_something_may_be_missing(live_server, page: Page):
    page.route("**/events/news*", lambda route: route.continue_(url=f"{live_server.url}/events/news?since=x"))
    page.goto(live_server.url + reverse("news"))

    expect(page.locator("#messages li span")).to_have_text(["Some messages may be missing here."])


def test_news_form_publishes(live_server, page: Page):
    page.goto(live_server.url + reverse("news"))
    expect(page.locator("#state")).to_have_text("open")

    page.get_by_label("Message").fill("hello from the form")
    page.get_by_role("button", name="Publish").click()

    expect(page.locator("#messages li")).to_contain_text(["hello from the form"])
    expect(page.get_by_label("Message")).to_have_value("")


def test_news_form_works_without_javascript(live_server, chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(live_server.url + reverse("news"))

    page.get_by_label("Message").fill("hello")
    with page.expect_response("**/news/publish") as answer:
        page.get_by_role("button", name="Publish").click()

    assert answer.value.status == 204
    expect(page.get_by_role("heading", name="News")).to_be_visible()
    context.close()


def test_channels_are_columns_of_their_own(live_server, page: Page):
    page.goto(live_server.url + reverse("channels"))
    columns = page.locator("[data-events]")
    expect(columns).to_have_count(5)
    for number in range(5):
        expect(columns.nth(number).locator("h2")).to_have_class("state open")

    realtime.publish("channel_2", "to the second")
    realtime.publish("channel_5", "to the fifth")

    expect(columns.nth(1).locator("li")).to_have_text(["to the second"])
    expect(columns.nth(4).locator("li")).to_have_text(["to the fifth"])
    expect(page.locator("[data-events] li")).to_have_count(2)


def test_channels_show_the_current_value_at_once(live_server, page: Page, settings):
    settings.REALTIME = {**settings.REALTIME, "CHANNELS": DEMO["CHANNELS"]}
    page.goto(live_server.url)  # the server owns the bus from its first request on
    realtime.publish("channel_2", "old")
    realtime.publish("channel_2", "current")

    page.goto(live_server.url + reverse("channels"))

    expect(page.locator("[data-events]").nth(1).locator("li")).to_have_text(["current"])


def test_channels_publisher_starts_and_stops(live_server, page: Page, settings, tmp_path):
    settings.CACHES = {
        "default": {**settings.CACHES["default"], "LOCATION": tmp_path},
    }
    page.goto(live_server.url + reverse("channels"))

    page.get_by_role("button", name="Start publishing").click()
    expect(page.locator("[data-events] li").first).to_contain_text("°C")
    page.get_by_role("button", name="Stop publishing").click()

    expect(page.get_by_role("button", name="Start publishing")).to_be_visible()


# The chat. A live test server has no WebSockets, so these pages speak to one of Playwright's.

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class Hub:
    """Takes the WebSockets of a page: sends each its messages, and closes all but the last.

    What the page sends comes back to it, with a name before it.
    """

    def __init__(self, page: Page) -> None:
        self.messages: list[list[dict[str, object]]] = []
        self.cursors: list[str] = []  # where each was to begin
        page.route_web_socket("**/ws/*", self._open)

    def _open(self, socket: WebSocketRoute) -> None:
        socket.on_message(lambda text: socket.send(json.dumps(message(None, f"Ada: {text}"))))
        self.cursors.append(socket.url.partition("?since=")[2])
        for sent in self.messages.pop(0) if self.messages else []:
            socket.send(json.dumps(sent))
        if self.messages:
            socket.close(code=1001)


@pytest.fixture
def hub(page: Page) -> Hub:
    return Hub(page)


def message(
    id: str | None, data: object, event: str | None = None, channel: str | None = "chat"
) -> dict[str, object]:
    return {"id": id, "channel": channel, "event": event, "data": data}


def join(page: Page, url: str, name: str = "Ada") -> None:
    page.goto(url + reverse("chat"))
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Join").click()


def test_chat_shows_messages_as_text(live_server, page: Page, hub: Hub):
    hub.messages = [[message("e-1", "Bob: one"), message("e-2", "Bob: <b>two</b>")]]

    join(page, live_server.url)

    expect(page.locator("#messages li span")).to_have_text(["Bob: <b>two</b>", "Bob: one"])


def test_chat_sends_what_is_written_and_shows_what_comes_back(live_server, page: Page, hub: Hub):
    join(page, live_server.url)

    page.get_by_label("Message").fill("hello")
    page.get_by_role("button", name="Send").click()

    expect(page.get_by_label("Message")).to_have_value("")
    expect(page.locator("#messages li span")).to_have_text(["Ada: hello"])


def test_chat_begins_where_the_page_was_made_and_goes_on_behind_the_last_id(
    live_server, page: Page, hub: Hub
):
    hub.messages = [
        [message("e-1", "one"), message(None, "of a channel without history")],
        [message("e-2", None, event="cursor", channel=None)],
        [message("e-3", "two")],
    ]

    join(page, live_server.url)

    expected = ["two", "of a channel without history", "one"]
    expect(page.locator("#messages li span")).to_have_text(expected)
    begin, *cursors = hub.cursors
    assert CURSOR.fullmatch(begin)
    assert cursors == ["e-1", "e-2"]


def test_chat_says_that_something_may_be_missing_and_goes_on_behind_it(live_server, page: Page, hub: Hub):
    hole = {"channels": ["chat"], "reason": "expired"}
    hub.messages = [
        [message("e-7", hole, event="reset", channel=None)],
        [message("e-8", "published by that name", event="reset")],
    ]

    join(page, live_server.url)

    expected = ["published by that name", "Some messages may be missing here."]
    expect(page.locator("#messages li span")).to_have_text(expected)
    assert hub.cursors[1:] == ["e-7"]


def test_chat_keeps_the_name_until_the_visitor_leaves(live_server, page: Page, hub: Hub):
    join(page, live_server.url, "  Ada\tLovelace ")
    expect(page.get_by_text("You are Ada Lovelace")).to_be_visible()

    page.reload()
    expect(page.get_by_text("You are Ada Lovelace")).to_be_visible()
    page.get_by_role("button", name="Leave").click()

    expect(page.get_by_label("Your name")).to_be_visible()


def test_chat_under_a_server_without_websockets_says_what_to_run(live_server, page: Page):
    join(page, live_server.url)

    expect(page.get_by_text("manage.py runserver has no WebSockets")).to_be_visible()
    expect(page.locator("#state")).to_have_text("connecting")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()


def test_chat_takes_only_who_has_a_name(client):
    def open_socket() -> int:
        return client.get(reverse("chat-socket"), headers=HANDSHAKE).status_code

    assert open_socket() == 403
    client.post(reverse("chat-name"), {"name": "Ada"})
    assert open_socket() == 501  # the test client has no hub either
    client.post(reverse("chat-name"), {"name": "  "})
    assert open_socket() == 403


def test_inverted_chat_says_what_turns_it_around(live_server, page: Page, hub: Hub):
    page.goto(live_server.url + reverse("inverted"))

    expect(page.get_by_text("python manage.py rt_consume")).to_be_visible()
    expect(page.locator("#state")).to_have_text("open")
