"""The official JavaScript clients of Socket.IO, spoken to from Python.

One Node process, `client.js`, holds any number of sockets:

    with Node() as node:
        client = node.connect("http://127.0.0.1:8000", transports=["websocket"])
        client.wait_until_connected()
        assert client.call("add", 1, 2) == [3]

What is bytes here is a Buffer there, in both directions.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TIMEOUT = 30  # seconds

# Of a client whose test says nothing else: so that it comes back at once.
RECONNECTION = {"reconnectionDelay": 10, "reconnectionDelayMax": 200}  # milliseconds


def install_packages() -> None:
    """Install what `package.json` names beside it, unless that is done."""
    assert shutil.which("npm"), "npm is not installed: `make test` installs it"
    wanted = (HERE / "package.json").read_text()
    modules = HERE / "node_modules"
    modules.mkdir(exist_ok=True)
    stamp = modules / ".installed.json"
    with (modules / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel", "error"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"npm install failed: {done.stderr}"
        stamp.write_text(wanted)


class Node:
    """The process that holds the sockets; they end with it."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._sockets: dict[int, SocketIOClient] = {}
        self._swarms: dict[int, SocketIOSwarm] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._directory = tempfile.TemporaryDirectory()
        self._errors_path = Path(self._directory.name) / "stderr"
        with self._errors_path.open("w") as errors:
            self._process = subprocess.Popen(
                ["node", str(HERE / "client.js")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._thread = threading.Thread(target=self._read, name="node", daemon=True)
        self._thread.start()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            code = self._process.wait(TIMEOUT)
        finally:
            self._process.kill()
            self._process.wait()
            self._thread.join()
            self._process.stdout.close()
            errors = self._read_errors()
            self._directory.cleanup()
        assert code == 0, f"node has ended with exit code {code}: {errors}"

    def connect(
        self,
        url: str,
        *,
        path: str = "/socket.io/",
        namespace: str = "/",
        version: int = 4,
        answers: Mapping[str, Sequence[Any]] | None = None,
        **options: Any,
    ) -> SocketIOClient:
        """Open a socket, on a connection of its own unless `forceNew=False`; it has not connected yet.

        Args:
            version: Of the client: 4, or 2, which speaks Engine.IO 3.
            answers: By the name of an event: what its acknowledgement gets when the server asks for one.
            options: The client's own, as `transports`, `auth`, `query`, `extraHeaders`.
        """
        number = next(self._numbers)
        client = self._sockets[number] = SocketIOClient(self, number)
        self.send(
            command="connect",
            socket=number,
            answers=dict(answers or {}),
            **_arguments(url, path, namespace, version, options),
        )
        return client

    def connect_many(
        self,
        count: int,
        url: str,
        *,
        path: str = "/socket.io/",
        namespace: str = "/",
        version: int = 4,
        inflight: int = 50,
        **options: Any,
    ) -> SocketIOSwarm:
        """Open many sockets, each on a connection of its own and `inflight` at a time; see `connect`."""
        number = next(self._numbers)
        swarm = self._swarms[number] = SocketIOSwarm(self, number, count)
        self.send(
            command="swarm",
            swarm=number,
            count=count,
            inflight=inflight,
            **_arguments(url, path, namespace, version, options),
        )
        return swarm

    def send(self, **command: Any) -> None:
        """Write a command of `client.js`."""
        assert self._process.stdin is not None
        try:
            with self._changed:
                self._process.stdin.write(json.dumps(_to_json(command)) + "\n")
                self._process.stdin.flush()
        except BrokenPipeError:
            raise AssertionError(f"node has ended: {self._read_errors()}") from None

    def wait_until(self, condition: Callable[[], object], timeout: float, what: Callable[[], str]) -> None:
        """Wait until what the sockets have told makes a condition true.

        Raises:
            AssertionError: It was not true in time, or node has ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or condition(), timeout)
            if condition():
                return
            assert not self._ended, f"node has ended: {self._read_errors()}"
            raise AssertionError(f"waited {timeout:g} s in vain: {what()}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                message = _from_json(json.loads(line))
                with self._changed:
                    if "swarm" in message:
                        self._swarms[message["swarm"]].update(message)
                    else:
                        self._sockets[message["socket"]].update(message)
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read_errors(self) -> str:
        return self._errors_path.read_text()[-3000:]


class SocketIOClient:
    """One socket in one namespace; `Node.connect` makes it.

    Methods that wait raise AssertionError after `timeout` seconds.
    """

    def __init__(self, node: Node, number: int) -> None:
        self.received: list[tuple[str, list[Any]]] = []  # all events and their arguments
        self.connected = False
        self.connects = 0
        self.id: str | None = None  # of the last time it was connected
        self.recovered = False  # ... which the server had kept the state of
        self.transport: str | None = None  # "polling" or "websocket"
        self.disconnects: list[str] = []  # their reasons
        self.connect_errors: list[dict[str, Any]] = []  # with `message` and `data`
        self._node = node
        self._number = number
        self._calls = itertools.count()
        self._acks: dict[int, list[Any]] = {}
        self._taken: list[bool] = []  # which of `received` a wait has returned
        self._disconnects_taken = 0
        self._errors_taken = 0

    def emit(self, event: str, *args: Any) -> None:
        self._send("emit", args=[event, *args])

    def call(self, event: str, *args: Any, timeout: float = TIMEOUT) -> list[Any]:
        """Emit an event and return the arguments of its acknowledgement."""
        call = next(self._calls)
        self._send("call", call=call, args=[event, *args])
        self._wait(lambda: call in self._acks, timeout, f"the acknowledgement of {event!r}")
        return self._acks.pop(call)

    def wait_for(self, event: str, timeout: float = TIMEOUT) -> list[Any]:
        """Return the arguments of the first event of this name that was not returned before."""
        self._wait(lambda: self._index_of(event) is not None, timeout, f"event {event!r}")
        index = self._index_of(event)
        assert index is not None
        self._taken[index] = True
        return self.received[index][1]

    def wait_until_connected(self, timeout: float = TIMEOUT) -> SocketIOClient:
        self._wait(lambda: self.connected, timeout, "the connection")
        return self

    def wait_for_connects(self, count: int, timeout: float = TIMEOUT) -> None:
        """Wait until it has connected so many times, as `2` after `drop()`."""
        self._wait(lambda: self.connects >= count, timeout, f"{count} connections")

    def wait_for_disconnect(self, timeout: float = TIMEOUT) -> str:
        """Return the reason of the first disconnect that was not returned before."""
        self._wait(lambda: len(self.disconnects) > self._disconnects_taken, timeout, "a disconnect")
        self._disconnects_taken += 1
        return self.disconnects[self._disconnects_taken - 1]

    def wait_for_connect_error(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Return `message` and `data` of the first refusal that was not returned before."""
        self._wait(lambda: len(self.connect_errors) > self._errors_taken, timeout, "a refusal")
        self._errors_taken += 1
        return self.connect_errors[self._errors_taken - 1]

    def wait_for_transport(self, name: str, timeout: float = TIMEOUT) -> None:
        self._wait(lambda: self.transport == name, timeout, f"transport {name!r}")

    def drop(self) -> None:
        """Cut the transport, after which the client reconnects.

        A WebSocket ends without a close frame; polling by the engine's close(), which tells the server.
        """
        self._send("drop")

    def disconnect(self) -> None:
        """Leave the namespace for good; `reconnect()` comes back."""
        self._send("disconnect")

    def reconnect(self) -> None:
        self._send("reconnect")

    def update(self, message: dict[str, Any]) -> None:
        """Take what the socket has told; for `Node`."""
        match message["type"]:
            case "event":
                self.received.append((message["name"], message["args"]))
                self._taken.append(False)
            case "ack":
                self._acks[message["call"]] = message["args"]
            case "connect":
                self.connected, self.id, self.recovered = True, message["id"], message["recovered"]
                self.connects += 1
            case "disconnect":
                self.connected = False
                self.disconnects.append(message["reason"])
            case "connect_error":
                self.connect_errors.append({"message": message["message"], "data": message["data"]})
            case "transport":
                self.transport = message["name"]

    def _index_of(self, event: str) -> int | None:
        pairs = zip(self.received, self._taken, strict=True)
        return next((n for n, ((name, _), taken) in enumerate(pairs) if name == event and not taken), None)

    def _send(self, command: str, **fields: Any) -> None:
        self._node.send(command=command, socket=self._number, **fields)

    def _wait(self, condition: Callable[[], object], timeout: float, what: str) -> None:
        self._node.wait_until(condition, timeout, lambda: f"{what}; {self._summary()}")

    def _summary(self) -> str:
        return (
            f"connected {self.connected} by {self.transport}, disconnects {self.disconnects}, "
            f"refusals {self.connect_errors}, last events {self.received[-5:]}"
        )


class SocketIOSwarm:
    """Many sockets that are looked at together; `Node.connect_many` makes it."""

    def __init__(self, node: Node, number: int, count: int) -> None:
        self.count = count
        self.connected = 0
        self.connects = 0  # those of sockets that came back included
        self.disconnects: dict[str, int] = {}  # by their reasons
        self.connect_errors: dict[str, int] = {}  # by their messages
        self._node = node
        self._number = number
        self._requests = itertools.count()
        self._answers: dict[int, Any] = {}

    def wait_until_connected(self, timeout: float = 60) -> SocketIOSwarm:
        """Wait until all sockets are connected at once."""
        self._node.wait_until(lambda: self.connected == self.count, timeout, self.summary)
        return self

    def wait_for_connects(self, count: int, timeout: float = 60) -> None:
        self._node.wait_until(lambda: self.connects >= count, timeout, self.summary)

    def wait_for_connect_errors(self, count: int, timeout: float = 60) -> None:
        """Wait until connecting has failed so many times."""
        self._node.wait_until(lambda: sum(self.connect_errors.values()) >= count, timeout, self.summary)

    def wait_until_disconnected(self, timeout: float = 60) -> None:
        self._node.wait_until(lambda: self.connected == 0, timeout, self.summary)

    def wait_for_all(self, event: str, count: int, timeout: float = 60) -> None:
        """Wait until each socket has had so many events of a name."""
        self._ask("swarm.wait", timeout, event=event, count=count)

    def problems(self, event: str, expected: Sequence[Any], timeout: float = 60) -> list[str]:
        """Say of each socket whose events' first arguments are not these, in this order, what is wrong.

        Args:
            expected: Numbers or texts, each different from the others.
        """
        problems: list[str] = self._ask("swarm.problems", timeout, event=event, expected=list(expected))
        return problems

    def emit(self, event: str, *args: Any) -> None:
        """Emit it from each socket."""
        self._send("swarm.emit", args=[event, *args])

    def drop(self) -> None:
        self._send("swarm.drop")

    def disconnect(self) -> None:
        self._send("swarm.disconnect")

    def summary(self) -> str:
        return (
            f"{self.connected} of {self.count} connected, {self.connects} connects, "
            f"disconnects {self.disconnects}, refusals {self.connect_errors}"
        )

    def update(self, message: dict[str, Any]) -> None:
        """Take what the swarm has told; for `Node`."""
        if message["type"] == "answer":
            self._answers[message["request"]] = message["value"]
            return
        counts = message["counts"]
        self.connected, self.connects = counts["connected"], counts["connects"]
        self.disconnects, self.connect_errors = counts["disconnects"], counts["errors"]

    def _ask(self, command: str, timeout: float, **fields: Any) -> Any:
        request = next(self._requests)
        self._send(command, request=request, **fields)
        self._node.wait_until(
            lambda: request in self._answers, timeout, lambda: f"{command} {fields}; {self.summary()}"
        )
        return self._answers.pop(request)

    def _send(self, command: str, **fields: Any) -> None:
        self._node.send(command=command, swarm=self._number, **fields)


def _arguments(
    url: str, path: str, namespace: str, version: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    options = {"path": path, "forceNew": True, **RECONNECTION, **options}
    return {"url": url.rstrip("/") + namespace, "version": version, "options": options}


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"$bytes"}:
            return base64.b64decode(value["$bytes"])
        return {name: _from_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return value
