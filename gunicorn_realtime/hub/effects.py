"""What applications want of connections after an event, in their order: see `plumbing.events`."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from ..plumbing.events import Close, Effect, Publish, Send, Subscribe, Unsubscribe

if TYPE_CHECKING:
    from .connection import Connection
    from .following import Following
    from .process import Hub

logger = logging.getLogger(__name__)


class Effects:
    """Does what applications want of a hub's connections."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # What waits for the bus to confirm a connection's channels.
        self._waiting: dict[Connection, deque[Effect]] = {}

    def apply(self, connection: Connection, effects: Iterable[Effect]) -> None:
        """Do what an application wants of a connection after an event, as long as there is one."""
        unapplied = self._waiting.get(connection)
        if unapplied is not None:
            unapplied.extend(effects)
        else:
            self._apply(connection, deque(effects))

    def wait(self, connection: Connection) -> None:
        """Let what follows an effect wait until `go_on`."""
        self._waiting.setdefault(connection, deque())

    def go_on(self, connection: Connection) -> None:
        if (effects := self._waiting.pop(connection, None)) is not None:
            self._apply(connection, effects)

    def _apply(self, connection: Connection, effects: deque[Effect]) -> None:
        while effects:
            if connection.is_over:
                self.publish(connection.audience.following, effects, connection)
                return
            kind = _kind_of(effects[0])
            if kind is Publish and not self._hub.subscriptions.is_settled(connection):
                # What it was subscribed to before, it gets; so it hears itself in a room that it has entered.
                self._waiting[connection] = effects
                self._hub.subscriptions.call_when_settled(connection, partial(self.go_on, connection))
                return
            some = [effects.popleft()]
            while effects and _kind_of(effects[0]) is kind:
                some.append(effects.popleft())
            self._apply_alike(connection, kind, some)
            if connection in self._waiting:
                self._waiting[connection].extendleft(reversed(effects))
                return

    def _apply_alike(self, connection: Connection, kind: type[Effect], effects: list[Effect]) -> None:
        engine = connection.audience.engine
        if kind is Send:
            sends = [effect for effect in effects if isinstance(effect, Send)]
            connection.answer(b"".join(engine.tell(send.data, is_binary=send.is_binary) for send in sends))
        elif kind is Close:
            [close, *_] = [effect for effect in effects if isinstance(effect, Close)]
            engine.disconnect(connection, close.code, close.reason)
        elif kind is Publish:
            self.publish(connection.audience.following, effects, connection)
        elif kind is Subscribe:
            changes = [
                effect
                for effect in effects
                if isinstance(effect, Unsubscribe)
                or (isinstance(effect, Subscribe) and engine.may_follow(connection, effect.channel.name))
            ]
            self._hub.subscriptions.change(connection, changes)
        else:
            for effect in effects:
                engine.perform(connection, effect)

    def publish(
        self, following: Following, effects: Iterable[Effect], connection: Connection | None = None
    ) -> None:
        """Send what an application publishes.

        Args:
            connection: Waits while too much is on its way.
        """
        messages = [effect.message for effect in effects if isinstance(effect, Publish)]
        for message in messages:
            if len(message.data) > following.max_message_size:
                logger.warning(
                    "A message on %r is too large: %d bytes", message.channel.name, len(message.data)
                )
        fitting = [message for message in messages if len(message.data) <= following.max_message_size]
        if fitting:
            following.outbox.put(connection, fitting)

    def forget(self, connection: Connection) -> None:
        """The connection is gone; what was to be published is."""
        if (waiting := self._waiting.pop(connection, None)) is not None:
            self.publish(connection.audience.following, waiting)


def _kind_of(effect: Effect) -> type[Effect]:
    """Return what effects have in common that are done in one step."""
    return Subscribe if isinstance(effect, Unsubscribe) else type(effect)
