"""Views for the urlconf: `path("news", realtime.sse("lotofnews"))`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple
from typing import Any, Literal

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_safe

from gunicorn_realtime.plumbing.events import ENVIRON_KEY as EVENT_KEY
from gunicorn_realtime.plumbing.offload import Offload
from gunicorn_realtime.protocols import sse as sse_protocol

from .conf import conf
from .identity import labels_of
from .members import MemberFunction, presence_function
from .naming import ChannelsFunction, TextFunction, channels_of, label, names_function, text_function
from .opening import (
    MAX_RECEIVED_SIZE,
    NO_HUB,
    cursor_of,
    open_websocket,
    plain_response,
    take_handshake,
    tuple_of,
)
from .responses import OffloadResponse, can_offload
from .signals import send_signal, wanted_events

View = Callable[..., HttpResponseBase]
Lifetime = float | Callable[..., float | None] | None


def sse(
    *channels: str | ChannelsFunction,
    raw: bool = False,
    event: str | None = None,
    headers: Mapping[str, str] | None = None,
    lifetime: Lifetime = None,
    signals: bool = False,
    presence: str | ChannelsFunction | None = None,
    member: MemberFunction | None = None,
) -> View:
    """Return a view that streams what is published to channels as server-sent events.

    A client that says where it has stopped first gets what its channels' history has since then. An
    EventSource that returns says it by itself (`Last-Event-ID`); a page says it by `?last_event_id=` and
    `{% rt_cursor %}`, any other client also by `?since=`.

    Args:
        channels: Names, in which `{room_id}` stands for the URL's argument `room_id` (a brace itself is
            written twice); or one function of the request and the URL's arguments that returns a name or
            several. None or no names answer 204, which tells an EventSource to stay away.
        raw: Messages are in the event stream format already and are passed on as they are. The ids in
            them are their publisher's, so clients can't resume.
        event: The type of events whose publisher named none; "message" if absent.
        headers: More headers of the response.
        lifetime: Seconds after which the stream ends and the client comes back, through the view; or a
            function of the request and the URL's arguments that returns them. None is for ever.
        signals: Send `django_realtime.signals.connected` when a stream has begun, and `disconnected` when it
            has ended.
        presence: The channel that the client is in while the stream lasts, named as those that it follows:
            who joins and leaves is published there, and `realtime.presence` tells who is in it.
        member: As whom: a function of the request and the URL's arguments that returns 1 to 200 bytes of
            text, or None for who is not counted. Without it, the primary key of who is logged in.

    Raises:
        ChannelNameError: A name can't be right whatever the URL is.
        TypeError: There is a `member`, and no `presence`.
        ValueError: `event` is not one line.
    """
    names_of = names_function(channels)
    presence_of = presence_function(presence, member)
    if event is not None:
        sse_protocol.encode_event(b"", event=event)

    def view(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        if EVENT_KEY in request.META:
            return send_signal(request, request.META[EVENT_KEY])
        followed = channels_of(names_of(request, **kwargs))
        if not followed:
            return HttpResponse(status=204, headers={"Cache-Control": "no-store"})
        if not can_offload(request):
            return plain_response(501, NO_HUB)
        head = {
            "Content-Type": sse_protocol.CONTENT_TYPE,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",  # nginx passes each event on as it comes
            **(headers or {}),
        }
        if request.method == "HEAD":
            return StreamingHttpResponse((), headers={**head, "Content-Encoding": "identity"})
        options = {"raw": raw, "event": event, "heartbeat": conf.heartbeat, "retry": list(conf.retry)}
        # The ids in a raw stream are its publisher's, so they say nothing of where its client stopped.
        cursor = None if raw else cursor_of(request)
        offload = Offload(
            "sse",
            followed,
            conf.bus,
            options,
            cursor,
            # Before the labels: it may be the first to ask who it is.
            presence=presence_of(request, **kwargs),
            labels=labels_of(request),
            expires=expiry_of(lifetime, request, kwargs),
            events=wanted_events() if signals else None,
        )
        return OffloadResponse(request, offload, headers=head)

    # Without csrf_exempt a POST would be answered 403, not 405.
    return csrf_exempt(require_safe(named(view, "sse", "Server-sent events", channels)))


def websocket(
    subscribe: str | Iterable[str] | ChannelsFunction = (),
    *,
    publish: str | Iterable[str] | ChannelsFunction = (),
    prefix: str | TextFunction = "",
    suffix: str | TextFunction = "",
    envelope: Literal["json"] | None = None,
    subprotocols: str | Iterable[str] = (),
    origins: str | Iterable[str] = (),
    max_size: int = MAX_RECEIVED_SIZE,
    compress: bool = True,
    lifetime: Lifetime = None,
    presence: str | ChannelsFunction | None = None,
    member: MemberFunction | None = None,
) -> View:
    """Return a view that opens a WebSocket between a client and channels.

    What is published to the one's channels is sent to the client; what the client sends is published to
    the others. Text stays text and bytes stay bytes, both ways. Pages of other sites are answered 403.

    With an envelope a client can resume: it says the last id it has seen by `?since=`, or `{% rt_cursor %}`
    if it has seen none, and first gets what it has missed.

    Args:
        subscribe: What the client gets: names and templates as with `sse`, or one function.
        publish: Where its messages go, likewise; without any, a message closes the connection with 1003.
        prefix, suffix: Text before and behind each message of the client: a template, or a function of
            the request and the URL's arguments, which knows who the client is.
        envelope: "json": each message is sent as `{"id", "channel", "event", "data"}`, see the guide.
        subprotocols: Those that the site speaks; of them the one that the client likes best is agreed on.
        origins: More sites whose pages may connect, beside `REALTIME["ORIGINS"]` and Django's
            CSRF_TRUSTED_ORIGINS, and written as there.
        max_size: Bytes of the largest message that a client may send; a larger one closes with 1009.
        compress: Agree to permessage-deflate (RFC 7692) where the client offers it.
        lifetime: As with `sse`; it ends with 1001.
        presence, member: As with `sse`.

    Raises:
        ChannelNameError: A name can't be right whatever the URL is.
        TypeError: There is a `member`, and no `presence`.
        ValueError: A template can't be.
    """
    followed_of, published_of = names_function_of(subscribe), names_function_of(publish)
    prefix_of, suffix_of = text_function(prefix), text_function(suffix)
    presence_of = presence_function(presence, member)
    # Of one name without a list around it, each letter would count, and "*" among them.
    spoken, trusted = tuple_of(subprotocols), tuple_of(origins)
    if envelope not in (None, "json"):
        raise ValueError(f'envelope={envelope!r} is neither None nor "json"')

    def view(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        handshake = take_handshake(request, origins=trusted, compress=compress)
        if isinstance(handshake, HttpResponse):
            return handshake
        followed = channels_of(followed_of(request, **kwargs))
        published = channels_of(published_of(request, **kwargs))
        particulars = {
            "publish": [astuple(channel) for channel in published],
            "prefix": prefix_of(request, **kwargs),
            "suffix": suffix_of(request, **kwargs),
        }
        return open_websocket(
            request,
            handshake,
            followed,
            particulars,
            envelope=envelope,
            subprotocols=spoken,
            max_size=max_size,
            expires=expiry_of(lifetime, request, kwargs),
            presence=presence_of(request, **kwargs),
        )

    channels = [subscribe] if isinstance(subscribe, str) or callable(subscribe) else list(subscribe)
    return csrf_exempt(require_GET(named(view, "websocket", "WebSocket", channels)))


def named(view: View, name: str, kind: str, channels: Iterable[str | ChannelsFunction]) -> View:
    """Give a view what Django's messages and `admindocs` say of it."""
    named = ", ".join(map(label, channels))
    view.__name__ = view.__qualname__ = f"{name}({named})"
    view.__doc__ = f"{kind} of {named}."
    return view


def names_function_of(channels: str | Iterable[str] | ChannelsFunction) -> ChannelsFunction:
    if isinstance(channels, str) or callable(channels):
        return names_function((channels,))
    names = tuple(channels)
    return names_function(names) if names else lambda request, **kwargs: ()


def expiry_of(lifetime: Lifetime, request: HttpRequest, kwargs: Mapping[str, Any]) -> float | None:
    """Return the Unix time when a connection ends that begins now."""
    seconds = lifetime(request, **kwargs) if callable(lifetime) else lifetime
    return None if seconds is None else time.time() + seconds
