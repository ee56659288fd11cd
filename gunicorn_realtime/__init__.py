"""Offload long-lived connections from gunicorn to a hub: ``gunicorn -k gunicorn_realtime.Worker``.

Nothing is imported here: the hub patches its own process with gevent before it imports
anything else, and this file runs before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["BusAddress", "Offload", "Worker", "announce"]

if TYPE_CHECKING:
    from .bus.address import BusAddress, announce
    from .plumbing.offload import Offload
    from .worker import Worker


def __getattr__(name: str) -> Any:
    if name == "Worker":
        from .worker import Worker

        return Worker
    if name == "Offload":
        from .plumbing.offload import Offload

        return Offload
    if name in ("BusAddress", "announce"):
        from .bus import address

        return getattr(address, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
