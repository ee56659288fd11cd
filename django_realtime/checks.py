"""System checks of the setting `REALTIME`. Their ids are never used for anything else again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeGuard

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from gunicorn_realtime.bus.address import CONTROL_CHARACTERS, BusAddress
from gunicorn_realtime.bus.channel import SlowClient
from gunicorn_realtime.bus.client import connection_options
from gunicorn_realtime.errors import BusUnavailable, ChannelNameError

from .conf import CHANNEL_DEFAULTS, DEFAULTS, WILDCARD, conf, rules_of
from .publishing import publisher

TAG = "realtime"

# Far more than a client could want to catch up on; a table of the database holds that better.
MAX_HISTORY = 100_000  # messages

# A history is for clients that come back, not an archive.
MAX_TTL = 366 * 24 * 60 * 60  # seconds

# Scheme and host, and the port where it is not the scheme's own (RFC 6454, section 6.2).
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", re.IGNORECASE)

Errors = list[CheckMessage]


def register_all() -> None:
    for check in CHECKS:
        register(check, TAG)
    register(check_eviction, TAG, deploy=True)


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
        _error("E002", f"REALTIME[{key!r}] is no setting.", _did_you_mean(key, DEFAULTS))
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


def check_event_timeout(**kwargs: Any) -> Errors:
    return _more_than_zero("E017", "EVENT_TIMEOUT")


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


def check_origins(**kwargs: Any) -> Errors:
    origins = _value("ORIGINS")
    hint = 'For instance ["https://example.com", "https://*.example.com"]; "*" is every site.'
    if isinstance(origins, str) or not isinstance(origins, Iterable):
        return [_error("E015", 'REALTIME["ORIGINS"] must be a list.', hint)]
    return [
        _error("E015", f'REALTIME["ORIGINS"]: {origin!r} is no origin.', hint)
        for origin in origins
        if not (isinstance(origin, str) and (origin == "*" or ORIGIN.fullmatch(origin)))
    ]


def check_channels(**kwargs: Any) -> Errors:
    channels = _value("CHANNELS")
    hint = 'For instance {"*": {"history": 100, "ttl": 300}, "chat-*": {"history": 0}}.'
    if not isinstance(channels, dict):
        return [_error("E009", 'REALTIME["CHANNELS"] must be a dictionary.', hint)]
    return [
        _error("E009", f'REALTIME["CHANNELS"][{pattern!r}] must be a dictionary, and its key text.', hint)
        for pattern, rules in channels.items()
        if not isinstance(pattern, str) or not isinstance(rules, dict)
    ]


def check_channel_patterns(**kwargs: Any) -> Errors:
    errors: Errors = []
    for pattern in _channels():
        try:
            # With a wildcard in it a name may be shorter than its pattern: `[abc]`.
            BusAddress("").channel(pattern[:100] if WILDCARD.search(pattern) else pattern)
        except ChannelNameError as exc:
            errors.append(_error("E010", f'REALTIME["CHANNELS"][{pattern!r}] can match no channel: {exc}.'))
    return errors


def check_channel_keys(**kwargs: Any) -> Errors:
    return [
        _error(
            "E011",
            f'REALTIME["CHANNELS"][{pattern!r}]: {key!r} is no rule of a channel.',
            _did_you_mean(key, CHANNEL_DEFAULTS),
        )
        for pattern, rules in _channels().items()
        for key in rules
        if key not in CHANNEL_DEFAULTS
    ]


def check_history(**kwargs: Any) -> Errors:
    return [
        _error(
            "E012",
            f'REALTIME["CHANNELS"][{pattern!r}]["history"] must be a number of messages, '
            f"0 to {MAX_HISTORY:,}.",
            "Each is kept in the bus's memory; 0 keeps none.",
        )
        for pattern, rules in _channels().items()
        if "history" in rules and not _is_history(rules["history"])
    ]


def check_ttl(**kwargs: Any) -> Errors:
    return [
        _error(
            "E013",
            f'REALTIME["CHANNELS"][{pattern!r}]["ttl"] must be a number of seconds, more than 0 where '
            f"history is kept, and at most {MAX_TTL:,}.",
            'To keep no history, set "history" to 0.',
        )
        for pattern, rules in _channels().items()
        if rules.keys() & {"history", "ttl"} and not _is_ttl(**_merged(pattern))
    ]


def check_slow_client(**kwargs: Any) -> Errors:
    policies = [policy.value for policy in SlowClient]
    return [
        _error(
            "E014",
            f'REALTIME["CHANNELS"][{pattern!r}]["slow_client"] must be one of '
            f"{', '.join(map(repr, policies))}.",
            _did_you_mean(rules["slow_client"], policies),
        )
        for pattern, rules in _channels().items()
        if "slow_client" in rules and rules["slow_client"] not in policies
    ]


def check_eviction(**kwargs: Any) -> Errors:
    """Ask the bus, so only where a deployment is checked."""
    if check_address() or conf.bus.is_local:
        return []
    try:
        may_evict = publisher(conf.bus).may_evict()
    except BusUnavailable:
        return []  # who publishes is told
    if not may_evict:
        return []
    return [
        Warning(
            f"Redis at {conf.bus.safe_url} may evict keys when its memory is full, and so lose the history "
            "of channels.",
            hint='Set "maxmemory-policy noeviction" there, or give the site\'s channels a Redis of their own.',
            id="django_realtime.W001",
        )
    ]


CHECKS = (
    check_type,
    check_keys,
    check_bus,
    check_prefix,
    check_bus_timeout,
    check_heartbeat,
    check_retry,
    check_event_timeout,
    check_max_message_size,
    check_origins,
    check_channels,
    check_channel_patterns,
    check_channel_keys,
    check_history,
    check_ttl,
    check_slow_client,
)


def _setting() -> Any:
    return getattr(settings, "REALTIME", {})


def _value(key: str) -> Any:
    """Return a setting's value, or its default where `check_type` says what is wrong."""
    return DEFAULTS[key] if check_type() else _setting().get(key, DEFAULTS[key])


def _channels() -> Mapping[str, Mapping[str, Any]]:
    """Return the rules of channels, or none where `check_channels` says what is wrong."""
    channels: Mapping[str, Mapping[str, Any]] = {} if check_channels() else _value("CHANNELS")
    return channels


def _merged(pattern: str) -> dict[str, Any]:
    rules = rules_of(_channels(), pattern)
    return {"history": rules["history"], "ttl": rules["ttl"]}


def _is_history(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_HISTORY


def _is_ttl(history: object, ttl: object) -> bool:
    if not _is_number(ttl) or not 0 <= ttl <= MAX_TTL:
        return False
    return ttl > 0 or history == 0


def _error(number: str, message: str, hint: str | None = None) -> Error:
    return Error(message, hint=hint, id=f"django_realtime.{number}")


def _did_you_mean(key: object, keys: Iterable[str]) -> str:
    by_spelling = {known.upper(): known for known in keys}
    if close := get_close_matches(str(key).upper(), by_spelling, n=1):
        return f"Did you mean {by_spelling[close[0]]!r}?"
    return f"There are {', '.join(keys)}."


def _more_than_zero(number: str, key: str) -> Errors:
    value = _value(key)
    if _is_number(value) and value > 0:
        return []
    return [_error(number, f'REALTIME["{key}"] must be a number of seconds, more than 0.')]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
