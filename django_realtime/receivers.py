"""Functions of the site that are called with what is published, by `manage.py rt_consume`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from django.core.cache import close_caches
from django.db import close_old_connections, reset_queries

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.consumer import Receiver
from gunicorn_realtime.bus.message import Message

from .conf import conf
from .publishing import MessageId


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message as a receiver gets it.

    Args:
        channel: Its name, without the site's prefix.
        data: What was published, encoded.
        event: The event's name, if the publisher gave one.
        id: The same each time that this message comes; None if its channel keeps no history, or it
            was published plainly.
        is_binary: It was published as bytes, not as text or JSON.
    """

    channel: str
    data: bytes
    event: str | None
    id: MessageId | None
    is_binary: bool

    @property
    def text(self) -> str:
        """The data as text; what is not UTF-8 is replaced."""
        return self.data.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return what the data says in JSON.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(self.data)


Function = TypeVar("Function", bound=Callable[[ReceivedMessage], object])
ResetFunction = Callable[[str, str], object]


def receiver(
    *channels: str, on_reset: ResetFunction | None = None, retries: float = 3
) -> Callable[[Function], Function]:
    """Let `manage.py rt_consume` call a function with each message that is published to channels.

    Messages come one after the other, in the order of their ids, and with their channel's history at
    least once. A function that raises is called with the same message again.

    Args:
        channels: Their names, without the site's prefix.
        on_reset: Called with a channel's name and a reason where messages of it are missing for good.
        retries: How often a call is repeated, after 0.2, 1, 5, 25 and then 30 s each, before the
            message is given up; may be `math.inf`.

    Raises:
        ChannelNameError: No channel can have such a name.
        TypeError: No channel is named, or the function is a coroutine function.
    """
    if not channels or not all(isinstance(channel, str) for channel in channels):
        raise TypeError('give one or more channel names: @realtime.receiver("news")')
    for channel in channels:
        BusAddress("").channel(channel)

    def register(function: Function) -> Function:
        if iscoroutinefunction(function):
            raise TypeError(f"{function.__qualname__} is a coroutine function: a receiver is a plain one")
        _registrations.extend(_Registration(name, function, on_reset, retries) for name in channels)
        return function

    return register


def received_channels() -> list[str]:
    """Return the names of the channels that have receivers."""
    return sorted({registration.channel for registration in _registrations})


def receivers(channels: Collection[str]) -> list[Receiver]:
    """Return what a consumer of these channels calls."""
    return [registration.receiver() for registration in _registrations if registration.channel in channels]


@dataclass(frozen=True, slots=True)
class _Registration:
    channel: str
    function: Callable[[ReceivedMessage], object]
    on_reset: ResetFunction | None
    retries: float

    def receiver(self) -> Receiver:
        return Receiver(
            conf.channel(self.channel),
            self._handle,
            self._reset if self.on_reset else None,
            self.retries,
        )

    def _handle(self, message: Message) -> None:
        message_id = message.stamp.cursor if message.stamp else None
        with _between_requests():
            self.function(
                ReceivedMessage(self.channel, message.data, message.event, message_id, message.is_binary)
            )

    def _reset(self, channel: str, reason: str) -> None:
        assert self.on_reset is not None
        with _between_requests():
            self.on_reset(self.channel, reason)


_registrations: list[_Registration] = []


@contextmanager
def _between_requests() -> Iterator[None]:
    """Do what Django does before a request and after it: old database connections are closed."""
    reset_queries()
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
        close_caches()
