from __future__ import annotations

from django.urls import path
from django.views.generic import TemplateView

import django_realtime as realtime

from . import rooms, views

urlpatterns = [
    path("", TemplateView.as_view(template_name="index.html"), name="index"),
    path("style.css", TemplateView.as_view(template_name="style.css", content_type="text/css"), name="style"),
    path(
        "follow.js",
        TemplateView.as_view(template_name="follow.js", content_type="text/javascript"),
        name="follow-js",
    ),
    path("ping", views.ping),
    # One channel.
    path("news", TemplateView.as_view(template_name="news.html"), name="news"),
    path("news/publish", views.publish_news, name="publish-news"),
    path("events/news", realtime.sse("lotofnews"), name="news-events"),
    # A channel for each URL.
    path("channels", views.channels, name="channels"),
    path("channels/publisher", views.publisher, name="publisher"),
    path("events/<int:n>", realtime.sse("channel_{n}"), name="channel-events"),
    # Both directions, and the session says who it is.
    path("chat", views.chat, name="chat"),
    path("chat/name", views.set_name, name="chat-name"),
    path(
        "ws/chat",
        views.if_joined(
            realtime.websocket("chat", publish="chat", prefix=views.name_prefix, envelope="json")
        ),
        name="chat-socket",
    ),
    # The same with handlers in Django, and with rooms.
    path("rooms/<slug:room>", rooms.room, name="room"),
    path("ws/rooms/<slug:room>", rooms.Room.as_view(), name="room-socket"),
    # In by one channel, out by another; a function in `receivers.py` stands between the two.
    path("inverted", TemplateView.as_view(template_name="inverted.html"), name="inverted"),
    path(
        "ws/inverted",
        realtime.websocket("inverted-out", publish="inverted-in", envelope="json"),
        name="inverted-socket",
    ),
]
