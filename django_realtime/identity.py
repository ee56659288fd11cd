"""Whose a connection is, so that the site can end it later."""

from __future__ import annotations

import hashlib
from typing import Any

from django.contrib.auth import SESSION_KEY
from django.db import transaction
from django.http import HttpRequest

from gunicorn_realtime.bus.control import Disconnect

from .conf import conf
from .publishing import publisher

# Private use in RFC 6455, section 7.4.2; as HTTP's 401, which it stands for.
DISCONNECTED = 4401


def disconnect(
    *,
    user: Any = None,
    session: str | None = None,
    channel: str | None = None,
    code: int = DISCONNECTED,
    using: str | None = None,
) -> None:
    """End the connections that match all that is given, of every kind and on every hub.

    Within a transaction it waits for the commit. A client may connect again; the view decides then.

    Args:
        user: A user, or a user's primary key. Known is who was logged in when the view ran, if anything
            had used the session by then (`login_required` does).
        session: A session's key.
        channel: A channel that they follow.
        code: For WebSockets, the code of the close frame; 3000 to 4999 are an application's own.
        using: The database whose transaction counts.

    Raises:
        ValueError: Nothing is given, a user without a primary key, or a code that may not be sent.
        ChannelNameError: No channel can have that name.
        BusUnavailable: The bus did not answer. Not raised while a transaction is open.
    """
    labels = []
    if user is not None:
        key = getattr(user, "pk", user)
        if key is None:
            raise ValueError(f"{user!r} has no primary key: it was never saved, or is deleted by now")
        labels.append(_user_label(key))
    if session is not None:
        labels.append(_session_label(session))
    if not labels and channel is None:
        raise ValueError("say whose connections are to end: user, session or channel")
    name = None if channel is None else conf.channel(channel).name
    control, bus = Disconnect(tuple(labels), name, code), conf.bus

    def send() -> None:
        publisher(bus).publish(bus.hubs_channel, control.encode())

    connection = transaction.get_connection(using)
    if connection.in_atomic_block:
        transaction.on_commit(send, using=using, robust=True)
    else:
        send()


def labels_of(request: HttpRequest) -> tuple[str, ...]:
    """Return the labels of a request's user and session; using neither, if the site has not."""
    session = getattr(request, "session", None)
    if session is None or not session.accessed:
        return ()
    user = session.get(SESSION_KEY)
    labels = [] if user is None else [_user_label(user)]
    if session.session_key:
        labels.append(_session_label(session.session_key))
    return tuple(labels)


def _user_label(key: object) -> str:
    return f"user:{key}"


def _session_label(key: str) -> str:
    # Whoever has a session's key is its user, so it goes nowhere.
    return f"session:{hashlib.sha256(key.encode()).hexdigest()[:32]}"
