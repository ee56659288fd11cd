"""How many connections a hub takes, and of whom."""

from __future__ import annotations

import logging
import resource
from collections import Counter
from collections.abc import Iterable

from ..plumbing.handover import Handover
from ..settings import Settings

logger = logging.getLogger(__name__)

# Descriptors that are not clients': the bus, logs, the local bus's clients, those in flight.
SPARE_DESCRIPTORS = 256

# What macOS grants when it says that there is no limit.
MACOS_OPEN_MAX = 10240


class Limits:
    """Counts a hub's connections: all, of each address and of each user.

    Args:
        settings: The operator's.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.capacity = _capacity(settings)
        self.count = 0
        self.per_address: Counter[str] = Counter()
        self.per_user: Counter[str] = Counter()

    def reason_to_refuse(self, address: str, labels: Iterable[str]) -> str | None:
        """Return why one more cannot be taken, or None if it can."""
        if self.count >= self.capacity:
            return f"the hub holds {self.capacity} connections, as many as it may"
        limit = self.settings.connections_per_address
        if address and limit and self.per_address[address] >= limit:
            return f"the address has {limit} connections, as many as it may"
        limit = self.settings.connections_per_user
        if limit and any(self.per_user[label] >= limit for label in _users(labels)):
            return f"its user has {limit} connections, as many as each may"
        return None

    def count_in(self, address: str, labels: Iterable[str]) -> None:
        self.count += 1
        if address:
            self.per_address[address] += 1
        self.per_user.update(_users(labels))

    def count_out(self, address: str, labels: Iterable[str]) -> None:
        self.count -= 1
        if address:
            _count_out(self.per_address, address)
        for user in _users(labels):
            _count_out(self.per_user, user)


def counted_address(handover: Handover) -> str:
    """Return the address that the client's limit is counted by; empty if it is a proxy."""
    return str(handover.client[0]) if handover.counted and isinstance(handover.client, tuple) else ""


def _capacity(settings: Settings) -> int:
    """Raise the open-file limit as far as we may; return how many clients fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MACOS_OPEN_MAX if hard == resource.RLIM_INFINITY else hard
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    possible = max(1, soft - SPARE_DESCRIPTORS)
    if not settings.connections:
        return possible
    if settings.connections > possible:
        logger.warning("The open-file limit %d leaves room for %d connections", soft, possible)
    return min(settings.connections, possible)


def _users(labels: Iterable[str]) -> list[str]:
    return [label for label in labels if label.startswith("user:")]


def _count_out(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
