"""System checks of the setting `REALTIME`. Their ids are never used for anything else again."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from gunicorn_realtime.bus.address import CONTROL_CHARACTERS, BusAddress
from gunicorn_realtime.bus.client import connection_options
from gunicorn_realtime.errors import BusUnavailable

from .conf import DEFAULTS

TAG = "realtime"

Errors = list[CheckMessage]


def register_all() -> None:
    for check in CHECKS:
        register(check, TAG)


def check_address() -> Errors:
    """Return what is wrong with the settings that name the bus."""
    return [*check_type(), *check_bus(), *check_prefix()]


def check_type(**kwargs: Any) -> Errors:
    if isinstance(_setting(), dict):
        return []
    return [_error("E001", "REALTIME must be a dictionary.", 'For instance: REALTIME = {"BUS": "local:"}')]


def check_keys(**kwargs: Any) -> Errors:
    if check_type():
        return []
    return [
        _error("E002", f"REALTIME[{key!r}] is no setting.", _did_you_mean(key))
        for key in _setting()
        if key not in DEFAULTS
    ]


def check_bus(**kwargs: Any) -> Errors:
    url = _value("BUS")
    hint = 'For instance "redis://localhost:6379/0", or "local:", which needs no server.'
    if not isinstance(url, str):
        return [_error("E003", 'REALTIME["BUS"] must be text.', hint)]
    if url == DEFAULTS["BUS"]:
        return []
    try:
        connection_options(BusAddress(url), timeout=1)
    except (ValueError, BusUnavailable) as exc:
        return [_error("E003", f'REALTIME["BUS"]: {exc}.', hint)]
    return []


def check_prefix(**kwargs: Any) -> Errors:
    prefix = _value("PREFIX")
    if isinstance(prefix, str) and not CONTROL_CHARACTERS.search(prefix):
        return []
    return [_error("E004", 'REALTIME["PREFIX"] must be text without control characters.')]


def check_bus_timeout(**kwargs: Any) -> Errors:
    return _more_than_zero("E005", "BUS_TIMEOUT")


def check_heartbeat(**kwargs: Any) -> Errors:
    return _more_than_zero("E006", "HEARTBEAT")


def check_retry(**kwargs: Any) -> Errors:
    match _value("RETRY"):
        case [least, most] if _is_number(least) and _is_number(most) and 0 <= least <= most:
            return []
    return [
        _error(
            "E007", 'REALTIME["RETRY"] must be two numbers of seconds, the least and the most.', "(1.0, 5.0)"
        )
    ]


def check_max_message_size(**kwargs: Any) -> Errors:
    size = _value("MAX_MESSAGE_SIZE")
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return []
    return [_error("E008", 'REALTIME["MAX_MESSAGE_SIZE"] must be a number of bytes, more than 0.')]


CHECKS = (
    check_type,
    check_keys,
    check_bus,
    check_prefix,
    check_bus_timeout,
    check_heartbeat,
    check_retry,
    check_max_message_size,
)


def _setting() -> Any:
    return getattr(settings, "REALTIME", {})


def _value(key: str) -> Any:
    """Return a setting's value, or its default where `check_type` says what is wrong."""
    return DEFAULTS[key] if check_type() else _setting().get(key, DEFAULTS[key])


def _error(number: str, message: str, hint: str | None = None) -> Error:
    return Error(message, hint=hint, id=f"django_realtime.{number}")


def _did_you_mean(key: object) -> str:
    if close := get_close_matches(str(key).upper(), DEFAULTS, n=1):
        return f"Did you mean {close[0]!r}?"
    return f"There are {', '.join(DEFAULTS)}."


def _more_than_zero(number: str, key: str) -> Errors:
    value = _value(key)
    if _is_number(value) and value > 0:
        return []
    return [_error(number, f'REALTIME["{key}"] must be a number of seconds, more than 0.')]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
