"""What the figures were measured on, and with which versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from .peers import version

OUR_PACKAGES = ("gunicorn", "gevent", "redis", "hiredis", "django")
PEERS_PACKAGES = ("starlette", "uvicorn", "django-eventstream", "python-socketio")
PROGRAMS = {"redis-server": "--version", "nginx": "-v", "node": "--version"}


def describe_machine() -> dict[str, str]:
    """Return names and versions; a version is empty where something is not installed."""
    return {
        "processor": f"{os.cpu_count()} × {_processor()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: _own_version(package) for package in OUR_PACKAGES},
        **{package: version(package) for package in PEERS_PACKAGES},
        **{program: _version_of_program(program, option) for program, option in PROGRAMS.items()},
    }


def _processor() -> str:
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.machine()


def _own_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _version_of_program(program: str, option: str) -> str:
    try:
        result = subprocess.run([program, option], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    match = re.search(r"\d+(\.\d+)+", result.stdout + result.stderr)
    return match[0] if match else ""
