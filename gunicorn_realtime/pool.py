"""The hubs are the worker's offload pool: they are started here and kept alive.

Each worker has one thread per hub that sleeps in flock() on the hub's lock file. Whoever gets the
lock starts the hub and gives it the locked descriptor. From then on the lock is the hub's and
falls free the instant it dies, in whatever way: election, mutual exclusion and death notice are
one system call.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from typing import Any

from .bus.address import announced
from .errors import OffloadRefused
from .plumbing.handover import announcement
from .plumbing.lines import Line, Lines

# A hub that ends sooner than this did not start; the next attempt waits longer, up to the maximum.
SHORT_LIFE = 1.0  # seconds
MAX_BACKOFF = 10.0  # seconds

# Where this package is, and where installed packages are.
HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SITE_PACKAGES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))

# The descriptor of a lock in the moment between flock() and the hub's start: the user's code may
# fork in another thread then, and its child must not keep the lock.
_taken: set[int] = set()


def _release_in_child() -> None:
    for fd in _taken:
        os.close(fd)
    _taken.clear()


os.register_at_fork(after_in_child=_release_in_child)


class Pool:
    """Keeps the hubs alive, from within one worker.

    Args:
        lines: What leads to the hubs.
        log: gunicorn's error log.
        hub_options: JSON-able; `gunicorn_realtime.hub` gets them on its command line.
        is_orphan: Says whether this worker's arbiter is gone.
    """

    def __init__(
        self, lines: Lines, log: Any, hub_options: dict[str, Any], is_orphan: Callable[[], bool]
    ) -> None:
        self.lines = lines
        self.log = log
        self.hub_options = hub_options
        self.is_orphan = is_orphan

    def start(self) -> None:
        for line in self.lines.lines:
            self._announce(line)
            threading.Thread(target=self._guard, args=(line,), name=f"hub-{line.index}", daemon=True).start()

    def _guard(self, line: Line) -> None:
        backoff = 0.0
        while True:
            lock = _open_lock(line)
            if lock is None:
                return
            fcntl.flock(lock, fcntl.LOCK_EX)  # sleeps while a hub lives
            if self.lines.stopping or self.is_orphan():
                os.close(lock)
                return
            started = time.monotonic()
            status = self._run_hub(line, lock)
            if status and not self.lines.stopping:
                self.log.error("Hub %d ended with status %d; starting another", line.index, status)
            lived = time.monotonic() - started
            backoff = 0.0 if lived > SHORT_LIFE else min(MAX_BACKOFF, 2 * backoff + 0.1)
            time.sleep(backoff)

    def _run_hub(self, line: Line, lock: int) -> int:
        """Start the hub with the locked descriptor and return its exit status when it has ended."""
        _taken.add(lock)
        try:
            fds = {
                "hand": line.hand_hub.fileno(),
                "back": self.lines.back_hub.fileno(),
                "events": self.lines.events_hub.fileno(),
                "lifeline": line.lifeline_hub,
                "lock": lock,
            }
            options = {
                **self.hub_options,
                "index": line.index,
                "directory": self.lines.directory,
                "fds": fds,
            }
            process = subprocess.Popen(
                # -P: the working directory's modules must not stand in for installed ones.
                [sys.executable, "-P", "-m", "gunicorn_realtime.hub", json.dumps(options)],
                pass_fds=list(fds.values()),
                start_new_session=True,  # Ctrl-C reaches the arbiter's group, not the hub
                stdin=subprocess.DEVNULL,
                env=_hub_environ(),
            )
        finally:
            _taken.discard(lock)
            os.close(lock)
        self._announce(line)
        return process.wait()

    def _announce(self, line: Line) -> None:
        bus = announced()
        if bus is None:
            return
        try:
            line.send(announcement(bus))
        except OffloadRefused as exc:
            self.log.warning("The bus could not be announced: %s", exc)


def _open_lock(line: Line) -> int | None:
    """Return a descriptor of our own of a hub's lock, or None if there is none any more.

    A cleaner of old files may have removed its name; the file lives on in the arbiter.
    """
    for path in (line.lock_path, f"/proc/self/fd/{line.lock}"):
        try:
            return os.open(path, os.O_RDWR)
        except OSError:
            pass
    return None


def _hub_environ() -> dict[str, str]:
    """Return our environment, in which a hub finds this package also when it is not installed."""
    environ = dict(os.environ)
    if HOME not in SITE_PACKAGES:
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HOME, environ.get("PYTHONPATH", "")]))
    return environ
