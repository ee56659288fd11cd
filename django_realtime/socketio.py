"""Views of Socket.IO and Engine.IO for the urlconf: `path("socket.io/", realtime.socketio(Chat))`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple
from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt

from gunicorn_realtime.bus.channel import Channel

from .engineio_opening import EngineIOOptions, Opening, SocketIOOptions, open_session, take_opening
from .members import MemberFunction, presence_function
from .naming import ChannelsFunction, channels_of
from .socketio_endpoint import Endpoint
from .socketio_view import SocketIOView
from .views import View, named, names_function_of

Names = str | Iterable[str] | ChannelsFunction


def socketio(
    handlers: type[SocketIOView] | Mapping[str, type[SocketIOView]] | None = None,
    *,
    subscribe: Names = (),
    publish: Names = (),
    presence: str | ChannelsFunction | None = None,
    member: MemberFunction | None = None,
    **options: Any,
) -> View:
    """Return a view that serves clients of Socket.IO: by handlers, or as a bridge to channels.

    As a bridge it runs no code: a message that is published to one of the channels under the name of an event
    reaches the clients as that event, with what its JSON, text or bytes say as its argument; what has no name
    is a "message". What a client emits is published to the others.

    Args:
        handlers: A `SocketIOView` for the namespace "/", or some by their namespaces.
        subscribe, publish: Channels of the bridge, named as with `realtime.websocket`.
        presence: As with `realtime.sse`; with handlers a name or template.
        member: As with `realtime.sse`; handlers have a method of that name.
        options: Attributes of `SocketIOView` that are to have other values here; of the bridge those of
            connections: origins, transports, ping_interval, ping_timeout, max_payload, connect_timeout,
            recovery, lifetime, direct.

    Raises:
        ChannelNameError: A name can't be right whatever the URL is.
        TypeError: There is no such option, or handlers are given together with channels.
        ValueError: A namespace or an option can't be right.
    """
    if handlers is None:
        return _bridge("socketio", SocketIOOptions(**options), subscribe, publish, presence, member)
    if subscribe or publish or member:
        raise TypeError("handlers have methods for what subscribe, publish and member do")
    if presence is not None:
        options["presence"] = presence
    served = {"/": handlers} if isinstance(handlers, type) else handlers
    return Endpoint.of(served, options).view()


def engineio(
    subscribe: Names = (),
    *,
    publish: Names = (),
    presence: str | ChannelsFunction | None = None,
    member: MemberFunction | None = None,
    **options: Any,
) -> View:
    """Return a view that opens a connection of Engine.IO between a client and channels.

    What is published to the one's channels is sent to the client; what the client sends is published to the
    others. Text stays text and bytes stay bytes, both ways.

    Args:
        subscribe, publish, presence, member: As with `realtime.websocket`.
        options: origins, transports, ping_interval, ping_timeout, max_payload, lifetime and direct, as with
            `realtime.EngineIOView`.

    Raises:
        ChannelNameError, TypeError, ValueError: As with `realtime.socketio`.
    """
    return _bridge("engineio", EngineIOOptions(**options), subscribe, publish, presence, member)


def _bridge(
    engine: str,
    options: EngineIOOptions,
    subscribe: Names,
    publish: Names,
    presence: str | ChannelsFunction | None,
    member: MemberFunction | None,
) -> View:
    followed_of, published_of = names_function_of(subscribe), names_function_of(publish)
    presence_of = presence_function(presence, member)

    def view(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        opening = take_opening(request, options)
        if not isinstance(opening, Opening):
            return opening
        followed = channels_of(followed_of(request, **kwargs))
        particulars = {"publish": _astuples(channels_of(published_of(request, **kwargs)))}
        more_options = {}
        if engine == "socketio":
            # A client has them when it has connected to the namespace, so the hub subscribes to them then.
            particulars["subscribe"], followed = _astuples(followed), ()
            more_options["namespaces"] = ["/"]
        return open_session(
            request,
            opening,
            engine,
            options,
            particulars,
            channels=followed,
            more_options=more_options,
            kwargs=kwargs,
            presence=presence_of(request, **kwargs),
        )

    channels = [subscribe] if isinstance(subscribe, str) or callable(subscribe) else list(subscribe)
    return csrf_exempt(named(view, engine, "A bridge", channels))


def _astuples(channels: Iterable[Channel]) -> list[tuple[Any, ...]]:
    return [astuple(channel) for channel in channels]
