"""Waiting for what announces itself by no event: a line in a log, a process that is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = 30, what: str | Callable[[], str] = "") -> T:
    """Return the first true value of `condition`, which is asked every few milliseconds.

    Args:
        timeout: Seconds.
        what: What is waited for, for the error message, or a function that tells how things stand.

    Raises:
        AssertionError: It was not true in time.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain: {what() if callable(what) else what}")
        time.sleep(0.02)
    return value
