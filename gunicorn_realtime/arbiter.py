"""What belongs to gunicorn's first process: the lines to the hubs, and how they end with it."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from .plumbing.lines import Lines
from .settings import Settings

# How long the arbiter waits for the hubs in all, when nothing is to be lost by being quick.
HUBS_TIMEOUT = 5.0  # seconds

# Made by the first worker's constructor, which runs in the arbiter; one per arbiter.
_lines: Lines | None = None


def drain_timeout(cfg: Any) -> float:
    """Return the seconds that hubs may take to let their clients go."""
    return min(HUBS_TIMEOUT, float(cfg.graceful_timeout) / 2)


def arbiter_lines(cfg: Any, settings: Settings) -> Lines:
    """Return this arbiter's lines, made on first use."""
    global _lines
    if _lines is None or _lines.arbiter_pid != os.getpid():
        _lines = Lines(settings.hubs, cfg.uid, cfg.gid)
        atexit.register(_close_lines, _lines)
        _drain_hubs_before_stopping(_lines, cfg)
    return _lines


def _close_lines(lines: Lines) -> None:
    if os.getpid() == lines.arbiter_pid:
        lines.close(HUBS_TIMEOUT)


def _drain_hubs_before_stopping(lines: Lines, cfg: Any) -> None:
    """At SIGTERM let the hubs drain while the workers still run, then let the arbiter have the signal.

    A second SIGTERM does not wait. SIGINT and SIGQUIT are quick stops: the hubs drain when the
    arbiter is about to exit.
    """
    arbiter_handler = signal.getsignal(signal.SIGTERM)
    if not callable(arbiter_handler) or threading.current_thread() is not threading.main_thread():
        return
    handler: Callable[[int, Any], Any] = arbiter_handler

    def on_term(signum: int, frame: Any) -> None:
        if os.getpid() != lines.arbiter_pid or lines.stopping:
            handler(signum, frame)
            return
        lines.drain_hubs()

        def pass_on() -> None:
            lines.wait_for_hubs(drain_timeout(cfg))
            handler(signum, None)

        threading.Thread(target=pass_on, name="drain", daemon=True).start()

    signal.signal(signal.SIGTERM, on_term)
