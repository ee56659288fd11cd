"""Who is there: as whom a connection counts, and who is in a channel now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest

from gunicorn_realtime.bus.presence import Presence

from .conf import conf
from .naming import ChannelsFunction, channels_of, names_function
from .publishing import publisher

MemberFunction = Callable[..., str | None]


def presence(channel: str) -> list[str]:
    """Return the members of a channel: those who have a connection whose view counts them there.

    It is right whatever has crashed: who has not been heard of for half a minute is not there.

    Args:
        channel: Its name, as in `presence` of the view.

    Returns:
        Their names, sorted, each once.

    Raises:
        ChannelNameError: No channel can have that name.
        BusUnavailable: The bus did not answer.
    """
    return publisher(conf.bus).members(conf.channel(channel).name)


def presence_function(
    channel: str | ChannelsFunction | None, member: MemberFunction | None
) -> Callable[..., Presence | None]:
    """Return the function that tells where a request's connection counts, and as whom.

    Raises:
        ChannelNameError: The channel's name can't be right whatever the URL is.
        TypeError: There is a member and no channel.
    """
    if channel is None:
        if member is not None:
            raise TypeError("`member` says who is there, and `presence` where: give both")
        return lambda request, **kwargs: None
    names_of, member_of = names_function((channel,)), member or user_key

    def presence_of(request: HttpRequest, **kwargs: Any) -> Presence | None:
        channels = channels_of(names_of(request, **kwargs))
        if not channels:
            return None
        if len(channels) > 1:
            raise ValueError(f"`presence` names one channel, not {len(channels)}")
        name: object = member_of(request, **kwargs)
        if name is None:
            return None
        if not isinstance(name, str):
            raise TypeError(f"a member's name is a str or None, not {name!r}")
        [counted] = channels
        return Presence(counted.name, name, counted.history, counted.ttl)

    return presence_of


def user_key(request: HttpRequest, **kwargs: Any) -> str | None:
    """Return the primary key of who is logged in."""
    user = getattr(request, "user", None)
    return str(user.pk) if user is not None and user.is_authenticated else None
