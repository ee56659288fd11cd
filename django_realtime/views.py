"""Views for the urlconf: `path("news", realtime.sse("lotofnews"))`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.errors import ChannelNameError
from gunicorn_realtime.plumbing.offload import Offload
from gunicorn_realtime.protocols import sse as protocol

from .conf import conf
from .responses import OffloadResponse, can_offload

ChannelsFunction = Callable[..., str | Iterable[str] | None]
View = Callable[..., HttpResponseBase]

NO_HUB = (
    "This server cannot hold long-lived connections. "
    "Run the site with: gunicorn -k gunicorn_realtime.Worker\n"
)

# Ours have 23; what is longer would only fill frames and logs.
MAX_CURSOR_SIZE = 100  # characters

# Stands for what can be no cursor; the client is sent a reset for it.
INVALID_CURSOR = "invalid"


def sse(
    *channels: str | ChannelsFunction,
    raw: bool = False,
    event: str | None = None,
    headers: Mapping[str, str] | None = None,
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

    Raises:
        ChannelNameError: A name can't be right whatever the URL is.
        ValueError: `event` is not one line.
    """
    names_of = _names_function(channels)
    if event is not None:
        protocol.encode_event(b"", event=event)

    def view(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        followed = _channels(names_of(request, **kwargs))
        if not followed:
            return HttpResponse(status=204, headers={"Cache-Control": "no-store"})
        if not can_offload(request):
            return HttpResponse(NO_HUB, status=501, content_type="text/plain; charset=utf-8")
        head = {
            "Content-Type": protocol.CONTENT_TYPE,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",  # nginx passes each event on as it comes
            **(headers or {}),
        }
        if request.method == "HEAD":
            return StreamingHttpResponse((), headers={**head, "Content-Encoding": "identity"})
        options = {"raw": raw, "event": event, "heartbeat": conf.heartbeat, "retry": list(conf.retry)}
        # The ids in a raw stream are its publisher's, so they say nothing of where its client stopped.
        cursor = None if raw else _cursor(request)
        return OffloadResponse(request, Offload("sse", followed, conf.bus, options, cursor), headers=head)

    view.__name__ = view.__qualname__ = f"sse({', '.join(map(_label, channels))})"
    view.__doc__ = f"Server-sent events of {', '.join(map(_label, channels))}."
    return csrf_exempt(require_safe(view))  # a POST is answered 405, not 403


def _names_function(channels: tuple[str | ChannelsFunction, ...]) -> ChannelsFunction:
    match channels:
        case [function] if callable(function):
            return function
        case [str(), *_] if all(isinstance(channel, str) for channel in channels):
            return _ChannelTemplates(channels)  # type: ignore[arg-type]  # mypy can't follow all()
    raise TypeError("give one or more channel names, or one function that returns them")


class _ChannelTemplates:
    """Channel names that `str.format` makes of the URL's arguments."""

    def __init__(self, templates: tuple[str, ...]) -> None:
        self.templates = templates
        for template in templates:
            _check_template(template)

    def __call__(self, request: HttpRequest, **kwargs: Any) -> list[str]:
        try:
            return [template.format(**kwargs) for template in self.templates]
        except KeyError as exc:
            raise ImproperlyConfigured(
                f"channels {self.templates!r} need {exc} of the URL, which has {sorted(kwargs)}"
            ) from None


def _check_template(template: str) -> None:
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as exc:
        raise ChannelNameError(f"channel {template!r}: {exc}") from None
    for field in fields:
        if not field.isidentifier():
            raise ChannelNameError(f"channel {template!r}: {field!r} can't be the name of a URL argument")
    if not fields:
        BusAddress("").channel(template.format())


def _channels(names: str | Iterable[str] | None) -> tuple[Channel, ...]:
    if not names:
        return ()
    if isinstance(names, str):
        names = (names,)
    try:
        return tuple(dict.fromkeys(map(conf.channel, names)))
    except ChannelNameError as exc:
        raise Http404(str(exc)) from exc  # made of the client's URL, so no such thing exists


def _cursor(request: HttpRequest) -> str | None:
    """Return where the client has stopped; None if it is new."""
    cursor = (
        # First, as an EventSource that returns repeats its URL, whose cursor is an older one by then.
        request.headers.get("Last-Event-ID") or request.GET.get("last_event_id") or request.GET.get("since")
    )
    if not cursor:
        return None
    is_safe = len(cursor) <= MAX_CURSOR_SIZE and cursor.isascii() and cursor.isprintable()
    return cursor if is_safe else INVALID_CURSOR


def _label(channel: str | ChannelsFunction) -> str:
    if isinstance(channel, str):
        return channel
    return getattr(channel, "__name__", type(channel).__name__)
