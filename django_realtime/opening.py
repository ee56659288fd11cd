"""What views of long-lived connections have in common, and above all those that open WebSockets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.presence import Presence
from gunicorn_realtime.plumbing.offload import Events, Offload
from gunicorn_realtime.protocols.websocket_handshake import Handshake, HandshakeError, read_handshake

from .conf import conf
from .identity import labels_of
from .origin import is_welcome
from .responses import OffloadResponse, has_hub

NO_HUB = (
    "This server cannot hold long-lived connections. "
    "Run the site with: gunicorn -k gunicorn_realtime.Worker\n"
)

# Ours have 23; what is longer would only fill frames and logs.
MAX_CURSOR_SIZE = 100  # characters

# Stands for what can be no cursor; the client is sent a reset for it.
INVALID_CURSOR = "invalid"

# What one client may send at a time, if the view does not say otherwise.
MAX_RECEIVED_SIZE = 64 * 1024  # bytes


def take_handshake(
    request: HttpRequest, *, origins: Iterable[str], compress: bool
) -> Handshake | HttpResponse:
    """Read a request for a WebSocket; return the answer to one that is none, or not welcome."""
    version = request.META.get("SERVER_PROTOCOL", "")
    try:
        handshake = read_handshake("GET", version, request.headers, may_compress=compress)
    except HandshakeError as exc:
        return plain_response(exc.status, f"This is a WebSocket: {exc}.\n", exc.headers)
    if not is_welcome(request, origins):
        return plain_response(403, "Pages of this origin may not open the WebSocket.\n")
    return handshake


def open_websocket(
    request: HttpRequest,
    handshake: Handshake,
    followed: Sequence[Channel],
    particulars: Mapping[str, Any],
    *,
    envelope: str | None,
    subprotocols: Sequence[str],
    max_size: int,
    expires: float | None,
    events: Events | None = None,
    presence: Presence | None = None,
) -> HttpResponseBase:
    """Return the response that gives a WebSocket to the hub."""
    if not has_hub(request):
        return plain_response(501, NO_HUB)
    options = {
        "envelope": envelope,
        "prefix": conf.prefix,
        "heartbeat": conf.heartbeat,
        "max_size": max_size,
        "deflate": handshake.deflate and [handshake.deflate.server_max_window_bits],
    }
    offload = Offload(
        "websocket",
        tuple(followed),
        conf.bus,
        options,
        cursor_of(request),
        particulars,
        labels_of(request),
        expires,
        events,
        presence,
    )
    return OffloadResponse(request, offload, status=101, headers=_upgrade(handshake, subprotocols))


def cursor_of(request: HttpRequest) -> str | None:
    """Return where the client has stopped; None if it is new."""
    cursor = (
        # First, as an EventSource that returns repeats its URL, whose cursor is an older one by then.
        request.headers.get("Last-Event-ID") or request.GET.get("last_event_id") or request.GET.get("since")
    )
    if not cursor:
        return None
    is_safe = len(cursor) <= MAX_CURSOR_SIZE and cursor.isascii() and cursor.isprintable()
    return cursor if is_safe else INVALID_CURSOR


def plain_response(status: int, text: str, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return HttpResponse(text, status=status, content_type="text/plain; charset=utf-8", headers=headers)


def tuple_of(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return names of which there may be one without a list around it."""
    return (names,) if isinstance(names, str) else tuple(names)


def _upgrade(handshake: Handshake, subprotocols: Sequence[str]) -> dict[str, str]:
    """Return the headers of the response that opens a WebSocket."""
    chosen = next((name for name in handshake.subprotocols if name in subprotocols), None)
    headers = handshake.headers(chosen)
    del headers["Connection"]  # the server's (PEP 3333): the hub adds it
    return headers
