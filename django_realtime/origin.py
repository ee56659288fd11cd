"""Whether a page of another site may open a WebSocket: browsers let it, and send the user's cookies."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest
from django.utils.http import is_same_domain

from .conf import conf


def is_welcome(request: HttpRequest, origins: Iterable[str] = ()) -> bool:
    """Tell whether the page that asks is the site's own, or one that it trusts.

    A client that is no browser says no origin; it has no cookies but its own, and is welcome.

    Args:
        request: The handshake.
        origins: As in Django's CSRF_TRUSTED_ORIGINS, such as "https://*.example.com"; added to those
            there and in `REALTIME["ORIGINS"]`. "*" is every one.
    """
    origin = request.headers.get("Origin")
    if origin is None or origin == f"{request.scheme}://{request.get_host()}":
        return True
    trusted = [*origins, *conf.origins, *settings.CSRF_TRUSTED_ORIGINS]
    return any(_matches(origin, pattern) for pattern in trusted)


def _matches(origin: str, pattern: str) -> bool:
    if pattern in ("*", origin):
        return True
    scheme, _, host = pattern.partition("://")
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return host.startswith("*") and parts.scheme == scheme and is_same_domain(parts.netloc, host[1:])
