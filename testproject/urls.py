from __future__ import annotations

from django.urls import path
from django.views.generic import TemplateView

import django_realtime as realtime

from . import views

urlpatterns = [
    path("", TemplateView.as_view(template_name="index.html"), name="index"),
    path("style.css", TemplateView.as_view(template_name="style.css", content_type="text/css"), name="style"),
    path("ping", views.ping),
    # One channel.
    path("news", TemplateView.as_view(template_name="news.html"), name="news"),
    path("news/publish", views.publish_news, name="publish-news"),
    path("events/news", realtime.sse("lotofnews"), name="news-events"),
    # A channel for each URL.
    path("channels", views.channels, name="channels"),
    path("channels/publisher", views.publisher, name="publisher"),
    path("events/<int:n>", realtime.sse("channel_{n}"), name="channel-events"),
]
