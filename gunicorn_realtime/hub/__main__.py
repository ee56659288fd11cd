"""``python -m gunicorn_realtime.hub OPTIONS``: started by a worker, with the descriptors it needs."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import gc
import json
import logging
import os
import shutil
import signal
import sys
from logging.handlers import WatchedFileHandler

from ..settings import Settings
from .process import Hub

LOG_FORMAT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"  # gunicorn's
LOG_DATE_FORMAT = "[%Y-%m-%d %H:%M:%S %z]"


def main() -> int:
    options = json.loads(sys.argv[1])
    _log_to(options["errorlog"], options["loglevel"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    fds = options["fds"]
    hub = Hub(
        Settings.from_environ(os.environ),
        hand=fds["hand"],
        back=fds["back"],
        events=fds["events"],
        lifeline=fds["lifeline"],
        drain_timeout=options["drain_timeout"],
        index=options["index"],
    )
    signal.signal(signal.SIGTERM, lambda signum, frame: hub.stop())
    gc.freeze()  # what is here now stays: no collection need look at it again
    logging.getLogger(__name__).info(
        "Hub %d holds up to %d connections", options["index"], hub.limits.capacity
    )
    hub.run()
    if _arbiter_is_gone(fds["lifeline"]):
        shutil.rmtree(options["directory"], ignore_errors=True)
    return 0


def _log_to(errorlog: str, level: str) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if errorlog != "-":
        handler = WatchedFileHandler(errorlog)
    handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_DATE_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())


def _arbiter_is_gone(lifeline: int) -> bool:
    """Whether the lifeline has ended: then nobody else removes the runtime directory."""
    os.set_blocking(lifeline, False)
    try:
        while data := os.read(lifeline, 64):
            del data
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
