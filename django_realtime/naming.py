"""What a urlconf says of a connection: templates that the URL's arguments fill, or functions of the request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from string import Formatter
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.http import Http404, HttpRequest

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.errors import ChannelNameError

from .conf import conf

ChannelsFunction = Callable[..., str | Iterable[str] | None]
TextFunction = Callable[..., str]


def names_function(channels: tuple[str | ChannelsFunction, ...]) -> ChannelsFunction:
    """Return the function that names a view's channels.

    Args:
        channels: Templates, or one function.

    Raises:
        TypeError: It is neither.
        ChannelNameError: A name can't be right whatever the URL is.
    """
    match channels:
        case [function] if callable(function):
            return function
        case [str(), *_] if all(isinstance(channel, str) for channel in channels):
            templates = [_Template(channel) for channel in channels if isinstance(channel, str)]
            return lambda request, **kwargs: [template(request, **kwargs) for template in templates]
    raise TypeError("give one or more channel names, or one function that returns them")


def text_function(text: str | TextFunction) -> TextFunction:
    """Return the function that makes a text of the request: the one that was given, or a template's.

    Raises:
        ValueError: The template can't be right whatever the URL is.
    """
    return text if callable(text) else _Template(text, is_channel=False)


def channels_of(names: str | Iterable[str] | None) -> tuple[Channel, ...]:
    """Return the channels of these names, each once, with the rules that the settings have for them.

    Raises:
        Http404: No channel can have such a name.
    """
    if not names:
        return ()
    if isinstance(names, str):
        names = (names,)
    try:
        return tuple(dict.fromkeys(map(conf.channel, names)))
    except ChannelNameError as exc:
        raise Http404(str(exc)) from exc  # made of the client's URL, so no such thing exists


def label(channel: str | ChannelsFunction) -> str:
    """Return how messages about a view name one of its channels."""
    if isinstance(channel, str):
        return channel
    return getattr(channel, "__name__", type(channel).__name__)


class _Template:
    """A text that `str.format` makes of the URL's arguments."""

    def __init__(self, template: str, *, is_channel: bool = True) -> None:
        self.template = template
        error = ChannelNameError if is_channel else ValueError
        what = f"channel {template!r}" if is_channel else f"{template!r}"
        try:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        except ValueError as exc:
            raise error(f"{what}: {exc}") from None
        for field in fields:
            if not field.isidentifier():
                raise error(f"{what}: {field!r} can't be the name of a URL argument")
        if is_channel and not fields:
            BusAddress("").channel(template.format())

    def __call__(self, request: HttpRequest, **kwargs: Any) -> str:
        try:
            return self.template.format(**kwargs)
        except KeyError as exc:
            raise ImproperlyConfigured(
                f"{self.template!r} needs {exc} of the URL, which has {sorted(kwargs)}"
            ) from None
