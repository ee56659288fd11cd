"""The channels of Socket.IO: one for each namespace, and within it for each room, socket and user."""

from __future__ import annotations

PREFIX = "socketio:"

# What follows a namespace. Rooms may be named by clients where a site lets them; the others may not.
ROOM = "#"
SOCKET = "!"
USER = "@"
MARKS = ROOM + SOCKET + USER


def namespace_channel(namespace: str) -> str:
    """Return the channel of all who are in a namespace."""
    return PREFIX + namespace


def room_channel(namespace: str, room: str) -> str:
    """Return the channel of a room."""
    return f"{PREFIX}{namespace}{ROOM}{room}"


def socket_channel(namespace: str, socket: str) -> str:
    """Return the channel of one socket, by its id."""
    return f"{PREFIX}{namespace}{SOCKET}{socket}"


def user_channel(namespace: str, user: str) -> str:
    """Return the channel of all sockets of one user, by their primary key."""
    return f"{PREFIX}{namespace}{USER}{user}"


def namespace_of(channel: str) -> str | None:
    """Return the namespace that a channel belongs to; None if it is none of Socket.IO's."""
    if not channel.startswith(PREFIX):
        return None
    name = channel[len(PREFIX) :]
    ends = [end for mark in MARKS if (end := name.find(mark)) >= 0]
    return name[: min(ends)] if ends else name
