from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST

import django_realtime as realtime

from . import random_publisher


def ping(request: HttpRequest) -> HttpResponse:
    return HttpResponse("pong", content_type="text/plain")


@require_POST
def publish_news(request: HttpRequest) -> HttpResponse:
    try:
        realtime.publish("lotofnews", request.POST.get("text", ""))
    except realtime.RealtimeError as exc:
        return HttpResponse(f"Not published: {exc}", status=503, content_type="text/plain; charset=utf-8")
    return HttpResponse(status=204)  # a browser without JavaScript stays where it is


def channels(request: HttpRequest) -> HttpResponse:
    context = {
        "numbers": random_publisher.CHANNELS,
        "running": random_publisher.is_running(),
        "seconds": random_publisher.SECONDS,
    }
    return render(request, "channels.html", context)


@require_POST
def publisher(request: HttpRequest) -> HttpResponse:
    if request.POST.get("command") == "start":
        random_publisher.start()
    else:
        random_publisher.stop()
    return HttpResponse(status=204)
