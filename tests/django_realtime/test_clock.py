from __future__ import annotations

import logging
import re
import time

import pytest
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import Context, RequestContext, Template
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path

import django_realtime as realtime
from django_realtime.clock import forget_request, note_request_started
from django_realtime.conf import conf
from gunicorn_realtime.bus.client import Publisher
from tests.django_realtime.conftest import run_async

pytestmark = pytest.mark.urls(__name__)

TEMPLATE = Template("{% load realtime %}<{% rt_cursor %}>")


def publish_then_render(request: HttpRequest) -> HttpResponse:
    """A page that is made while somebody publishes."""
    published = realtime.publish("news", "while the page is made")
    page = TEMPLATE.render(RequestContext(request))
    return JsonResponse({"published": published, "page": page, "view": realtime.cursor(request)})


def render_twice(request: HttpRequest) -> HttpResponse:
    return HttpResponse(TEMPLATE.render(RequestContext(request)) + TEMPLATE.render(Context()))


async def publish_then_answer(request: HttpRequest) -> HttpResponse:
    published = await realtime.apublish("news", "while the page is made")
    return JsonResponse({"published": published, "view": realtime.cursor(request)})


urlpatterns = [
    path("page", publish_then_render),
    path("twice", render_twice),
    path("async", publish_then_answer),
]


def id_of(cursor: str) -> int:
    return int(cursor.split("-")[1])


@pytest.fixture(params=["local", "redis"])
def bus(request, settings) -> None:
    if request.param == "redis":
        settings.REALTIME = {"BUS": request.getfixturevalue("redis_server").url}
    else:
        request.getfixturevalue("local_bus")


def test_a_page_stands_where_the_bus_was_when_its_request_began(bus):
    before = realtime.publish("news", "before")
    started = time.monotonic()

    answer = Client().get("/page").json()

    assert re.fullmatch(r"<[0-9a-z]{6}-[0-9]{16}>", answer["page"])
    assert answer["page"] == f"<{answer['view']}>"
    assert id_of(answer["view"]) < id_of(answer["published"])
    # By no more than the bus took to answer it is too early.
    microseconds = (time.monotonic() - started) * 1_000_000
    assert id_of(answer["view"]) > id_of(before) - microseconds


def test_a_stream_from_a_page_s_cursor_has_what_was_published_while_it_was_made(bus):
    answer = Client().get("/page").json()

    page = _read_after(id_of(answer["view"]))

    assert page == [b"while the page is made"]


def _read_after(after: int) -> list[bytes]:
    publisher = Publisher(conf.bus)
    channel = conf.channel("news")
    log = publisher.read_after([channel], after).logs[channel.name]
    publisher.close()
    return [message.data for message in log.entries]


def test_an_async_view_gives_its_request(bus):
    answer = run_async(AsyncClient().get, "/async").json()

    assert id_of(answer["view"]) < id_of(answer["published"])


def test_a_request_reads_the_clock_once(settings, redis_server):
    settings.REALTIME = {"BUS": redis_server.url}
    realtime.cursor()  # connects
    with redis_server.client() as client:
        before = client.info("stats")["total_reads_processed"]
        page = Client().get("/twice").text
        reads = client.info("stats")["total_reads_processed"] - before

    first, second = re.findall(r"<(.+?)>", page)
    assert first == second
    assert reads == 2  # the clock, and the second INFO


def test_outside_a_request_it_is_the_clock_of_now(bus):
    Client().get("/twice")  # in this thread, and it is over

    first = realtime.publish("news", "1")
    cursor = realtime.cursor()
    second = realtime.publish("news", "2")

    # What the answer took is subtracted all the same, so a message of just before may come again.
    assert id_of(cursor) < id_of(second)
    assert id_of(cursor) > id_of(first) - 1_000_000
    assert realtime.cursor() != cursor


def test_a_request_that_began_no_server_is_outside(bus):
    first = realtime.cursor(RequestFactory().get("/"))

    assert first != realtime.cursor(RequestFactory().get("/"))


def test_a_page_renders_without_a_bus(settings, caplog):
    settings.REALTIME = {"BUS": "unix:///nowhere/redis.sock"}

    with caplog.at_level(logging.WARNING):
        page = Client().get("/twice").text

    assert page == "<><>"
    [record] = [record for record in caplog.records if record.name == "django_realtime.clock"]
    assert "a page has no cursor" in record.getMessage()


def test_a_thread_s_next_request_has_a_cursor_of_its_own(bus):
    note_request_started(environ={})
    first = realtime.cursor()
    note_request_started(environ={})
    second = realtime.cursor()
    forget_request()

    assert id_of(first) < id_of(second) < id_of(realtime.publish("news", "x"))
