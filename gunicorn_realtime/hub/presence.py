"""Whose connections a hub holds, as it tells one bus.

The bus is brought to what is true now, not told of each step: what it was not told while it was away
is told once it is back, and nothing is lost by saying it twice.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import islice
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from ..bus.client import Publisher
from ..bus.presence import Presence, PresenceTimes
from ..errors import BusUnavailable

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger(__name__)

# Told in one command, which nothing else in Redis can interrupt: a few milliseconds.
BATCH = 256

# Shares of an entry's lifetime. Two renewals may fail before it expires.
RENEWAL = 1 / 3
SWEEP = 1 / 15

# Nothing is swept for so long after the bus was away, for all hubs are to renew theirs first.
QUIET = 1 / 3

# A time of the bus until which nothing has expired: who sweeps until then only asks for the time.
NOTHING = 1  # microseconds

# After the bus did not answer.
RETRY_PAUSE = (0.5, 1.0)  # seconds

# A hub that stops waits for the bus no longer: what it could not say shows when its entries expire.
CLOSE_TIMEOUT = 1.0  # seconds


class Presences:
    """Counts the connections of each member in each channel: the first enters it, the last leaves.

    Args:
        commanding: Gives the bus's client for a few calls.
        times: How long the bus takes somebody for present.
    """

    def __init__(
        self, commanding: Callable[[], AbstractContextManager[Publisher]], times: PresenceTimes
    ) -> None:
        self.times = times
        self._commanding = commanding
        self._hub = secrets.token_hex(8)
        self._presences: dict[Connection, Presence] = {}
        self._counts: Counter[Presence] = Counter()
        self._entering: dict[Presence, None] = {}  # whom the bus does not know to be here, or not for long
        self._leaving: dict[Presence, float] = {}  # whom it does not know to be gone, and since when
        self._changed = Event()
        self._telling = BoundedSemaphore()
        self._is_told = True
        self._renew_at = 0.0
        self._sweep_at = 0.0
        # In microseconds, and when it was so here; None if the bus may be away.
        self._bus_time: tuple[int, float] | None = None
        self.renew()
        self._greenlets = [gevent.spawn(self._tell_forever), gevent.spawn(self._sweep_forever)]

    # Called from the loop.

    def enter(self, connection: Connection, presence: Presence) -> None:
        """A connection begins to count."""
        self._presences[connection] = presence
        self._counts[presence] += 1
        if self._counts[presence] == 1:
            self._leaving.pop(presence, None)
            self._entering[presence] = None
            self._changed.set()

    def leave(self, connection: Connection) -> None:
        """A connection has ended, whether it counted or not."""
        presence = self._presences.pop(connection, None)
        if presence is None:
            return
        self._counts[presence] -= 1
        if not self._counts[presence]:
            del self._counts[presence]
            self._entering.pop(presence, None)
            self._leaving[presence] = time.monotonic()
            self._changed.set()

    def renew(self) -> None:
        """The bus may have forgotten everybody, or soon will: tell it anew."""
        now = time.monotonic()
        self._renew_at = now + self.times.lifetime * RENEWAL
        # Then only, or a hub that was stopped for long would sweep its own.
        self._sweep_at = max(self._sweep_at, now + self.times.lifetime * SWEEP)
        self._entering.update(dict.fromkeys(self._counts))
        if self._entering:
            self._changed.set()

    def bus_is_back(self) -> None:
        """The bus was away, or is new."""
        self.renew()
        self._bus_time = None

    def close(self) -> None:
        """Tell the bus what is left to tell."""
        try:
            with gevent.Timeout(CLOSE_TIMEOUT):
                self._tell()
        except (BusUnavailable, gevent.Timeout) as exc:
            logger.warning("%d members may seem to be here a little longer: %s", len(self._leaving), exc)
        gevent.killall(self._greenlets)

    # Greenlets.

    def _tell_forever(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            try:
                self._tell()
                self._is_told = True
                continue
            except BusUnavailable as exc:
                if self._is_told:
                    logger.warning("The bus does not know who is here: %s", exc)
            except Exception:
                logger.exception("Telling the bus who is here failed")
            self._is_told = False
            self._bus_time = None
            self._forget_expired()
            gevent.sleep(random.uniform(*RETRY_PAUSE))
            self._changed.set()

    def _tell(self) -> None:
        """Tell the bus who has come and gone; blocks the greenlet.

        Raises:
            BusUnavailable: The bus refused or did not answer. The rest is still to be told.
        """
        with self._telling:
            while self._entering or self._leaving:
                with self._commanding() as publisher:
                    self._tell_batch(publisher)

    def _tell_batch(self, publisher: Publisher) -> None:
        if entering := list(islice(self._entering, BATCH)):
            publisher.enter(self._hub, entering, self.times.lifetime)
            _drop(self._entering, entering)
        if leaving := list(islice(self._leaving, BATCH)):
            publisher.leave(self._hub, leaving, self.times.linger)
            _drop(self._leaving, leaving)

    def _forget_expired(self) -> None:
        expired = time.monotonic() - self.times.lifetime
        self._leaving = {presence: since for presence, since in self._leaving.items() if since > expired}

    def _sweep_forever(self) -> None:
        while True:
            # Not together with the other hubs, so that there is less for each.
            gevent.sleep(self.times.lifetime * SWEEP * random.uniform(0.75, 1.25))
            if time.monotonic() >= self._renew_at:
                self.renew()
            try:
                self._sweep()
            except BusUnavailable as exc:
                logger.debug("Who has left could not be looked for: %s", exc)
                self._bus_time = None
            except Exception:
                logger.exception("Looking for who has left failed")

    def _sweep(self) -> None:
        if self._bus_time is None:
            self._sweep_until(NOTHING)
            self._sweep_at = time.monotonic() + self.times.lifetime * QUIET
        while time.monotonic() >= self._sweep_at and self._bus_time is not None:
            # What a bus that is held up was asked for, it does before it hears who is still here. So it
            # is to sweep up to now, and not to then.
            bus_time, then = self._bus_time
            passed = round((time.monotonic() - then) * 1_000_000)
            if not self._sweep_until(bus_time + passed):
                return

    def _sweep_until(self, bus_time: int) -> bool:
        """Sweep once; return whether there may be more to sweep."""
        with self._commanding() as publisher:
            are_more, bus_time = publisher.sweep(BATCH, bus_time)
        self._bus_time = bus_time, time.monotonic()
        return are_more


def _drop(told: dict[Presence, Any], presences: Iterable[Presence]) -> None:
    for presence in presences:
        told.pop(presence, None)
