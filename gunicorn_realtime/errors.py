"""Every error of the two packages.

RealtimeError
├── ProtocolError       the peer sent what its protocol forbids: answer as the protocol says, close
│   └── TooLarge        ... or more than our limit
├── BusUnavailable      Redis refused or was too slow: retry, or let the client reconnect
├── OffloadRefused      the hub is full, stopping, or out of reach: refuse in the client's protocol
└── ChannelNameError    a channel's name is empty, too long, or reserved
"""

from __future__ import annotations


class RealtimeError(Exception):
    """The base of all errors that these packages raise."""


class ProtocolError(RealtimeError):
    """The peer sent what its protocol forbids."""


class TooLarge(ProtocolError):
    """The peer sent more than our limit."""


class BusUnavailable(RealtimeError):
    """The bus refused or did not answer in time; the message may or may not have been sent."""


class OffloadRefused(RealtimeError):
    """No hub can take the connection now."""


class ChannelNameError(RealtimeError, ValueError):
    """A channel's name is empty, longer than 200 bytes, has control characters, or is reserved."""
