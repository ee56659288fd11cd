"""Process settings: environment variables, since the hub reads no Django settings.

Everything else about a connection is data that comes with its handover.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

PREFIX = "GUNICORN_REALTIME_"

WORD = re.compile(r"[0-9A-Za-z_-]{0,40}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator can set; each is GUNICORN_REALTIME_ and its name in capitals.

    Args:
        hubs: Hub processes.
        connections: Connections one hub holds; 0 means as many as its open-file limit allows.
        connections_per_address: Of them from one address. Addresses in gunicorn's
            `forwarded_allow_ips` are proxies and are not counted. 0 means no limit.
        connections_per_user: Of those that one hub holds, from one user of the site. 0 means no limit.
        feed_size: Bytes of a channel's messages that a hub keeps for those who lag.
        message_size: Bytes of the largest message that a hub takes from the bus.
        head_size: Bytes of the largest request head that is waited for.
        head_timeout: Seconds a client may take to send a request's head.
        write_timeout: Seconds a client may accept nothing while there is something to send.
        event_threads: Threads of each worker that handle what clients send, beside those for pages.
        machine: What ids of Socket.IO's sessions begin with, by which a proxy finds their machine: letters, digits,
            "_" and "-". If empty, a part of the
            hash of the host's name.
        presence_lifetime: Seconds after which members have left whose hub has died.
        presence_linger: Seconds after a member's last connection in which it may come back unnoticed.
    """

    hubs: int = 1
    connections: int = 0
    connections_per_address: int = 1000
    connections_per_user: int = 100
    feed_size: int = 4 * 1024 * 1024
    message_size: int = 1024 * 1024
    head_size: int = 64 * 1024
    head_timeout: float = 10.0
    write_timeout: float = 60.0
    event_threads: int = 2
    machine: str = ""
    presence_lifetime: float = 30.0
    # A browser comes back to a stream after 5 s at most, as REALTIME["RETRY"] has it, and a moment.
    presence_linger: float = 8.0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read them.

        Raises:
            ValueError: A value is no number or out of range, or the name of one is misspelled.
        """
        known = {PREFIX + field.name.upper(): field for field in fields(cls)}
        unknown = [name for name in environ if name.startswith(PREFIX) and name not in known]
        if unknown:
            raise ValueError(f"{unknown[0]} is not a setting; there are {', '.join(known)}")
        given: dict[str, Any] = {}
        for name, field in known.items():
            if name in environ:
                given[field.name] = _read(name, environ[name], type(field.default))
        return cls(**given)


def _read(name: str, text: str, kind: type) -> Any:
    if kind is not str:
        return _number(name, text, kind)
    if not WORD.fullmatch(text):
        raise ValueError(f"{name}={text!r} must be up to 40 letters, digits, '_' and '-'")
    return text


def _number(name: str, text: str, kind: type) -> float:
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number") from None
    may_be_zero = name in (
        PREFIX + "CONNECTIONS",
        PREFIX + "CONNECTIONS_PER_ADDRESS",
        PREFIX + "CONNECTIONS_PER_USER",
    )
    if not 0 <= value < float("inf") or (value == 0 and not may_be_zero):
        raise ValueError(f"{name}={text} must be more than 0")
    return value  # type: ignore[no-any-return]
