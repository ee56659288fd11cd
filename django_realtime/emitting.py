"""Emitting events of Socket.IO, from wherever Django runs: a view, a task, a command, a shell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asgiref.sync import sync_to_async
from django.core.serializers.json import DjangoJSONEncoder

from gunicorn_realtime.bus import rooms
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.message import Emission, Outgoing
from gunicorn_realtime.errors import ChannelNameError, TooLarge
from gunicorn_realtime.protocols.socketio import MAX_ATTACHMENTS, RESERVED_EVENTS, encode_arguments

from .conf import conf
from .opening import tuple_of
from .publishing import check_event, send

# "/" and what follows it may hold nothing that stands for something else in a packet or a channel's name.
NAMESPACE = re.compile(r"/[^\s\x00-\x1f\x7f#!@?,]*")

# Each is looked at for each delivery, and travels with the message.
MAX_SKIPPED = 100  # sockets and rooms


def emit(
    event: str,
    *args: Any,
    to: str | None = None,
    room: str | Iterable[str] | None = None,
    user: Any = None,
    namespace: str = "/",
    skip: str | Iterable[str] = (),
    skip_rooms: str | Iterable[str] = (),
    volatile: bool = False,
    using: str | None = None,
    immediately: bool = False,
) -> None:
    """Send an event to clients of Socket.IO: to everybody in a namespace, or to those who are named.

    Within a transaction it waits for the commit, exactly as `publish` does.

    Args:
        event: Its name, one line of at most 200 bytes.
        args: What Django's JSON encoder takes, and bytes anywhere in it.
        to: A socket's id (`self.sid` in its handlers).
        room: A room, or several; who is in more than one of them gets it once.
        user: A user, or a user's primary key: all sockets that this user has in the namespace.
        namespace: Only its clients get it.
        skip: A socket's id, or several, that do not get it.
        skip_rooms: A room, or several, whose clients do not get it.
        volatile: It is not kept: a client that is slow, or away for a moment, does not get it.
        using, immediately: As with `publish`.

    Raises:
        TypeError: An argument can't be encoded, or more than one of `to`, `room` and `user` is given.
        ValueError: The event's name is reserved; a namespace or room (ChannelNameError) can have no such name.
        TooLarge: The arguments have more than `REALTIME["MAX_MESSAGE_SIZE"]` bytes or 10 attachments, or more
            than 100 sockets and rooms are to be skipped.
        BusUnavailable: As with `publish`.
    """
    check_namespace(namespace)
    target = Target(namespace, to, room, user)
    outgoing = target.outgoing(event, args, tuple_of(skip), tuple_of(skip_rooms), is_volatile=volatile)
    send(outgoing, using=using, immediately=immediately)


aemit = sync_to_async(emit, thread_sensitive=True)


@dataclass(frozen=True, slots=True)
class Target:
    """Who gets an event: everybody in a namespace unless one of the others is given.

    Raises:
        TypeError: More than one is.
    """

    namespace: str
    to: str | None = None
    room: str | Iterable[str] | None = None
    user: Any = None

    def __post_init__(self) -> None:
        given = [name for name in ("to", "room", "user") if getattr(self, name) is not None]
        if len(given) > 1:
            raise TypeError(f"an event goes to one of {' and '.join(given)}, not to all")

    def outgoing(
        self,
        event: str,
        args: Sequence[Any],
        skip: tuple[str, ...],
        skip_rooms: tuple[str, ...],
        *,
        is_volatile: bool,
    ) -> list[Outgoing]:
        """Return the messages to publish: one for each room, of which a client gets the first."""
        data, sizes = _encode(event, args)
        skip_channels = [room_channel(self.namespace, room).name for room in skip_rooms]
        messages = []
        for channel in self._channels():
            emission = Emission(sizes, skip, tuple(skip_channels), is_volatile)
            if len(skip) + len(skip_channels) > MAX_SKIPPED:
                raise TooLarge(f"an event that skips more than {MAX_SKIPPED} sockets and rooms")
            kept = replace(channel, history=0) if is_volatile else channel
            messages.append(Outgoing(kept, data, event, emission=emission))
            skip_channels.append(channel.name)
        return messages

    def _channels(self) -> Iterator[Channel]:
        namespace = self.namespace
        if self.to is not None:
            yield conf.channel(rooms.socket_channel(namespace, self.to))
        elif self.room is not None:
            for room in dict.fromkeys(tuple_of(self.room)):
                yield room_channel(namespace, room)
        elif self.user is not None:
            yield user_channel(namespace, self.user)
        else:
            yield conf.channel(rooms.namespace_channel(namespace))


def room_channel(namespace: str, room: str) -> Channel:
    """Return a room's channel.

    Raises:
        ChannelNameError: No room can have that name.
    """
    if not room:
        raise ChannelNameError("a room's name is empty")
    return conf.channel(rooms.room_channel(namespace, room))


def user_channel(namespace: str, user: Any) -> Channel:
    """Return the channel of a user's sockets.

    Raises:
        ValueError: The user has no primary key.
    """
    key = getattr(user, "pk", user)
    if key is None:
        raise ValueError(f"{user!r} has no primary key: it was never saved, or is deleted by now")
    return conf.channel(rooms.user_channel(namespace, str(key)))


def check_namespace(namespace: str) -> None:
    """Complain of what can be no namespace's name.

    Raises:
        ValueError: It can't.
    """
    if not NAMESPACE.fullmatch(namespace):
        raise ValueError(
            f'namespace {namespace!r} must begin with "/", and have no spaces and none of "#!@?,"'
        )
    conf.channel(rooms.namespace_channel(namespace))


def encode_event(event: str, args: Sequence[Any]) -> tuple[bytes, tuple[bytes, ...]]:
    """Return an event as one client gets it: JSON of its name and arguments, and the attachments.

    Raises:
        TypeError, ValueError, TooLarge: As `emit` does.
    """
    _check(event)
    return encode_args((event, *args))


def encode_args(args: Sequence[Any]) -> tuple[bytes, tuple[bytes, ...]]:
    """Return JSON of arguments, and their attachments.

    Raises:
        TypeError: JSON does not take them.
        TooLarge: They are too many or too long.
    """
    try:
        data, attachments = encode_arguments(args, DjangoJSONEncoder)
    except TypeError as exc:
        raise TypeError(
            f"an event's arguments must be bytes, or what Django's JSON encoder takes: {exc}"
        ) from exc
    if len(attachments) > MAX_ATTACHMENTS:
        raise TooLarge(f"an event with {len(attachments)} attachments, and clients take {MAX_ATTACHMENTS}")
    size = len(data) + sum(map(len, attachments))
    if size > conf.max_message_size:
        raise TooLarge(f"an event of {size} bytes, and REALTIME allows {conf.max_message_size}")
    return data, attachments


def _encode(event: str, args: Sequence[Any]) -> tuple[bytes, tuple[int, ...]]:
    """Return an event's arguments as one piece, and the sizes of its parts."""
    _check(event)
    data, attachments = encode_args(args)
    parts = (data, *attachments)
    return b"".join(parts), tuple(map(len, parts))


def _check(event: str) -> None:
    if not isinstance(event, str):
        raise TypeError(f"an event's name must be text, not {event!r}")
    if event in RESERVED_EVENTS:
        raise ValueError(f"the event {event!r} is reserved")
    check_event(event)
