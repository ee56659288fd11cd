"""Where a page stands: the bus's clock at the start of the request that renders it.

A page shows what the database held at some moment of its request, and connects later. With the clock
of the request's start as its cursor it gets every message since: some twice, but none is missing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from django.http import HttpRequest

from gunicorn_realtime.errors import BusUnavailable

from .conf import conf
from .publishing import publisher

logger = logging.getLogger(__name__)

KEY = "django_realtime.request"


@dataclass(slots=True)
class _Request:
    started: float = field(default_factory=time.monotonic)
    cursor: str | None = None


def cursor(request: HttpRequest | None = None) -> str:
    """Return the position of a page, or of any answer, that is about to be made.

    The clock is read once in a request, at the first call. It is the clock as of the request's start,
    whenever that call is; outside a request it is the clock as of now.

    Args:
        request: Needed under ASGI alone, where the request that is being answered is not known otherwise.

    Returns:
        What a stream's client gives as `?last_event_id=`; empty, and logged, if the bus is out of
        reach, and then the client starts with what comes next.
    """
    current = _environ(request).get(KEY) or _current.get() or _Request()
    if current.cursor is None:
        current.cursor = _read_clock(current.started)
    return current.cursor


def _read_clock(since: float) -> str:
    try:
        clock = publisher(conf.bus).read_clock()
    except BusUnavailable as exc:
        logger.warning("a page has no cursor, so what is published until it connects is lost: %s", exc)
        return ""
    # With the time that the answer took: rather too early than too late.
    passed = math.ceil((time.monotonic() - since) * 1_000_000)  # microseconds, as ids are
    return replace(clock, id=max(clock.id - passed, 0)).cursor


_current: ContextVar[_Request | None] = ContextVar("django_realtime.request", default=None)


def note_request_started(
    environ: MutableMapping[str, Any] | None = None,
    scope: MutableMapping[str, Any] | None = None,
    **kwargs: Any,
) -> None:
    """Remember the time: a receiver of Django's `request_started`."""
    request = _Request()
    for carrier in (environ, scope):
        if carrier is not None:
            carrier[KEY] = request
    _current.set(request)  # under ASGI in a context that ends with this call


def forget_request(**kwargs: Any) -> None:
    """What this thread does now is no longer for the request: a receiver of `request_finished`."""
    _current.set(None)


def _environ(request: HttpRequest | None) -> Mapping[str, Any]:
    if request is None:
        return {}
    scope: Mapping[str, Any] | None = getattr(request, "scope", None)  # ASGI's
    return request.META if scope is None else scope
