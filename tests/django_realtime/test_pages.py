"""The demo's pages in a browser, served by Django's live test server."""

from __future__ import annotations

from django.urls import reverse
from playwright.sync_api import Page, Route, expect

import django_realtime as realtime
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
