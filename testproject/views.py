from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

import django_realtime as realtime

from . import random_publisher

View = Callable[..., HttpResponseBase]

MAX_NAME_LENGTH = 30  # characters


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


def chat(request: HttpRequest) -> HttpResponse:
    context = {"name": request.session.get("name"), "max_length": MAX_NAME_LENGTH}
    return render(request, "chat.html" if context["name"] else "join.html", context)


@require_POST
def set_name(request: HttpRequest) -> HttpResponse:
    """Join the chat, or leave it with no name."""
    request.session["name"] = " ".join(request.POST.get("name", "").split())[:MAX_NAME_LENGTH]
    return redirect("chat")


def if_joined(view: View) -> View:
    """Answer 403 to who has no name: opening a WebSocket is a request as any other."""

    @wraps(view)
    def wrapper(request: HttpRequest, **kwargs: object) -> HttpResponseBase:
        if not request.session.get("name"):
            return HttpResponseForbidden("Join the chat first.\n", content_type="text/plain")
        return view(request, **kwargs)

    return wrapper


def name_prefix(request: HttpRequest) -> str:
    """Return what the hub puts before each message of this visitor, who can't choose another name."""
    return f"{request.session['name']}: "
