"""The peers: other servers that send messages to many clients, each set up as its own documentation says.

Each has one process (nginx: one worker) and, where it takes part in such a thing, a Redis to itself.
`requirements.txt` and `package.json` beside this file pin them; `make bench` installs them.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

from gunicorn_realtime.protocols.websocket_deflate import MIN_COMPRESSED_SIZE
from tests.servers import ROOT, RedisServer, free_port
from tests.waiting import wait_until

from ..load import Target
from ..servers import CHANNEL, Server, listens, temporary_directory, to_redis

HERE = Path(__file__).parent
VENV = ROOT / ".venv-bench"
NODE_MODULES = HERE / "node_modules"
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")  # where Debian has it


def peers() -> tuple[Server, ...]:
    starlette = partial(_missing_packages, "starlette", "uvicorn")
    eventstream = partial(_missing_packages, "django-eventstream", "uvicorn")
    compressed = partial(Server, least_size=MIN_COMPRESSED_SIZE)
    socketio = partial(_missing_packages, "python-socketio", "uvicorn", "websockets")
    return (
        Server("nchan", "nginx + nchan", nchan, "sse", _missing_nchan),
        Server("nchan-ws", "nginx + nchan", nchan, "ws", _missing_nchan),
        compressed("nchan-ws-deflate", "nginx + nchan, deflate", partial(nchan, True), "ws", _missing_nchan),
        Server("node", "node `http`", partial(node, "/sse"), "sse", _missing_node),
        Server("ws", "node `ws`", partial(node, "/ws"), "ws", _missing_node),
        compressed("ws-deflate", "node `ws`, deflate", partial(node, "/ws", True), "ws", _missing_node),
        Server("starlette", "Starlette", partial(uvicorn, "starlette_app:app", "/sse"), "sse", starlette),
        Server("starlette-ws", "Starlette", partial(uvicorn, "starlette_app:app", "/ws"), "ws", starlette),
        # With more than 10 in flight it drops what comes.
        Server("django-eventstream", "django-eventstream", django_eventstream, "sse", eventstream, window=8),
        Server("python-socketio", "python-socketio", python_socketio, "ws", socketio),
    )


@contextmanager
def nchan(deflate: bool = False) -> Iterator[Target]:
    """nginx with nchan, which keeps messages in its memory and takes them by HTTP."""
    with ExitStack() as stack:
        port, directory = free_port(), temporary_directory(stack)
        directory.chmod(0o755)  # as root, nginx' worker is another user
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        configuration = (HERE / "nginx.conf").read_text()
        values = {"MODULE": NCHAN, "DIRECTORY": directory, "PORT": port, "FILES": files}
        values["DEFLATE"] = "on" if deflate else "off"
        for name, value in values.items():
            configuration = configuration.replace(f"@{name}@", str(value))
        path = directory / "nginx.conf"
        path.write_text(configuration)
        pid = stack.enter_context(_running(["nginx", "-p", directory, "-c", path], port, directory))
        publish = ("--post", f"http://127.0.0.1:{port}/publish")
        yield Target(f"http://127.0.0.1:{port}/listen", publish, (pid,), deflate=deflate)


@contextmanager
def node(path: str, deflate: bool = False) -> Iterator[Target]:
    """node.js: its own HTTP server for SSE, the package `ws` for WebSocket."""
    with ExitStack() as stack:
        port, directory = free_port(), temporary_directory(stack)
        redis = stack.enter_context(RedisServer(directory))
        environment = {"PORT": str(port), "REDIS": redis.url, "DEFLATE": "1" if deflate else ""}
        pid = stack.enter_context(_running(["node", HERE / "server.js"], port, directory, environment))
        publish = to_redis(redis, CHANNEL)
        yield Target(f"http://127.0.0.1:{port}{path}", publish, (pid,), redis.pid, deflate=deflate)


@contextmanager
def uvicorn(
    app: str, path: str, *, channel: str = CHANNEL, template: str = "@MSG@", hello: str = ""
) -> Iterator[Target]:
    """An ASGI application of this folder; `template` is what its messages are in Redis."""
    with ExitStack() as stack:
        port, directory = free_port(), temporary_directory(stack)
        redis = stack.enter_context(RedisServer(directory))
        command = [VENV / "bin/python", "-m", "uvicorn", "--app-dir", HERE, "--port", port, app]
        command += ["--backlog", 4096, "--no-access-log", "--log-level", "warning"]
        environment = {"REDIS": redis.url, "REDIS_PORT": str(redis.port)}
        pid = stack.enter_context(_running(command, port, directory, environment))
        publish = (*to_redis(redis, channel), "--template", template)
        yield Target(f"http://127.0.0.1:{port}{path}", publish, (pid,), redis.pid, hello)


def django_eventstream() -> AbstractContextManager[Target]:
    # What its `send_event` puts into Redis.
    event = {"channel": "bench", "event_type": "message", "data": "@MSG@", "pub_id": None}
    return uvicorn("eventstream_site:app", "/events/", channel="events_channel", template=json.dumps(event))


def python_socketio() -> AbstractContextManager[Target]:
    # What `emit` of another process puts into Redis.
    emit = {
        **{"method": "emit", "event": "message", "data": "@MSG@", "namespace": "/", "room": None},
        **{"skip_sid": None, "callback": None, "host_id": "bench"},
    }
    path = "/socket.io/?EIO=4&transport=websocket"
    return uvicorn("socketio_app:app", path, template=json.dumps(emit), hello="40")


@contextmanager
def _running(
    command: Sequence[object], port: int, directory: Path, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a server as soon as it listens; gives its process id."""
    log_path = directory / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            env={**_environ(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ready() -> bool:
        assert process.poll() is None, f"{command[0]} has ended: {log_path.read_text()[-2000:]}"
        return listens(port)

    try:
        wait_until(ready, what=str(command[0]))
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)  # some wait for their clients, who are gone
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environ() -> dict[str, str]:
    """The environment without what a Django or Python of another project has put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "PYTHON"))}


def _missing_nchan() -> str:
    if shutil.which("nginx") and NCHAN.exists():
        return ""
    return "nginx or its module nchan is not installed (Debian: nginx, libnginx-mod-nchan)"


def _missing_node() -> str:
    if not shutil.which("node"):
        return "node is not installed (Debian: nodejs, npm)"
    for package in ("@redis/client", "ws"):
        if not (NODE_MODULES / package).exists():
            return f"{package} is not in {NODE_MODULES.relative_to(ROOT)}: `make bench` installs it"
    return ""


def _missing_packages(*packages: str) -> str:
    """Name the first of them that the bench's virtual environment does not have."""
    for package in packages:
        if not version(package):
            return f"{package} is not in {VENV.name}: `make bench` installs it"
    return ""


def version(package: str) -> str:
    """Return the version of a package of the bench's virtual environment, or nothing."""
    found = metadata.distributions(name=package, path=list(map(str, VENV.glob("lib/python*/site-packages"))))
    return next((distribution.version for distribution in found), "")
