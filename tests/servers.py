"""Real servers for end-to-end tests: gunicorn with its workers and hubs, and Redis.

A gunicorn under test is known by an environment variable that all its processes inherit, so
that nothing is ever taken for another server's, and nothing that is left behind goes unseen.
It finds processes in /proc, so these tests run on Linux only.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.clients import Address, connect
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
MARK = "REALTIME_TEST_SERVER"
LOG_LINES_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent_pid: int
    command: str

    @property
    def is_hub(self) -> bool:
        return "gunicorn_realtime.hub" in self.command

    @property
    def is_gunicorn(self) -> bool:
        return "-m gunicorn " in self.command


class GunicornServer:
    """`gunicorn -k gunicorn_realtime.Worker` in a session, a HOME and a TMPDIR of its own.

    Args:
        directory: For the log.
        app: What gunicorn serves.
        arguments: More of gunicorn's options.
        env: Environment variables, over the test's own without those of Django and gunicorn.
        bind: 127.0.0.1 and a free port, or what `-b` takes; `unix:/path` has a path for an address.
        worker_class: Another one for comparison.
        python_path: Where `app` is, if not in the project.
        prefix: A command to run gunicorn under, as `["unshare", "--pid", "--fork"]`.
        ready_path: What is requested to see whether it answers; any answer will do.
    """

    def __init__(
        self,
        directory: Path,
        app: str = "testproject.wsgi:application",
        *arguments: str,
        env: Mapping[str, str] | None = None,
        bind: str | None = None,
        worker_class: str = "gunicorn_realtime.Worker",
        python_path: Path | None = None,
        prefix: Sequence[str] = (),
        ready_path: str = "/",
    ) -> None:
        self.expect_traceback = False
        self.bind = bind or "127.0.0.1:0"
        self.ready_path = ready_path
        self.mark = uuid.uuid4().hex
        # Open to all like /tmp itself, for `--user`, and short enough for the path of a Unix socket.
        self.runtime_directory = Path(tempfile.mkdtemp(prefix="rt-"))
        self.runtime_directory.chmod(0o1777)
        self.home = self.runtime_directory / "home"
        self.home.mkdir()
        self.log_path = directory / f"gunicorn-{self.mark}.log"
        self.command = [
            *prefix,
            *(sys.executable, "-m", "gunicorn", "-k", worker_class, "-b", self.bind),
            *("--access-logfile", "-", *arguments, app),
        ]
        self.env = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("DJANGO_", "GUNICORN_")) and name != "TZ"  # Django sets TZ in here
            },
            "HOME": str(self.home),
            "TMPDIR": str(self.runtime_directory),
            "PYTHONUNBUFFERED": "1",
            MARK: self.mark,
            **({"PYTHONPATH": str(python_path)} if python_path else {}),
            **(env or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._address: Address | None = None

    def __enter__(self) -> GunicornServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.finish()

    def start(self, timeout: float = 60) -> GunicornServer:
        """Start it and wait until it answers an ordinary request."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            # With --reuse-port the line names no address, so such a test binds to a port that it knows.
            found = self.wait_for_log(r"Listening at: (?:https?://[^ ]*:(\d+)|unix:(\S+)| )", timeout)
            self._address = found[2] or int(found[1] or self.bind.rpartition(":")[2])
            wait_until(self._answers, timeout, lambda: f"an answer of gunicorn\n{self.log_tail()}")
        except BaseException:
            self.expect_traceback = True  # what is raised says it
            self.kill_all()
            raise
        return self

    def _answers(self) -> bool:
        self._assert_running()
        connection = http.client.HTTPConnection("127.0.0.1")
        try:
            connection.sock = connect(self.address, timeout=10)
            connection.request("GET", self.ready_path, headers={"Connection": "close"})
            connection.getresponse().close()  # the head is enough: the body may be a stream
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    @property
    def address(self) -> Address:
        """What the clients connect to: a port, or the path of a Unix socket."""
        assert self._address is not None, "the server has not been started"
        return self._address

    @property
    def port(self) -> int:
        assert isinstance(self.address, int), "the server listens on a Unix socket"
        return self.address

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server has not been started"
        return self._process

    @property
    def pid(self) -> int:
        """Of the arbiter."""
        if self.command[0] == sys.executable:
            return self.process.pid
        processes = [process for process in self.processes() if process.is_gunicorn and not process.is_hub]
        outside = {process.pid for process in processes if process.command.startswith(self.command[0])}
        inside = [process for process in processes if process.pid not in outside]
        return next(process.pid for process in inside if process.parent_pid not in {p.pid for p in inside})

    def worker_pids(self, arbiter_pid: int | None = None) -> list[int]:
        """Of the workers that live now; after USR2 there is another arbiter as well."""
        arbiter_pid = arbiter_pid or self.pid
        processes = self.processes()
        command = next((process.command for process in processes if process.pid == arbiter_pid), None)
        return [p.pid for p in processes if p.parent_pid == arbiter_pid and p.command == command]

    def hub_pids(self) -> list[int]:
        return [process.pid for process in self.processes() if process.is_hub]

    def processes(self) -> list[Process]:
        """All that are alive of this server, whoever their parent is by now."""
        return [process for pid in _all_pids() if (process := _process_with_mark(pid, self.mark))]

    def log(self) -> str:
        """gunicorn's error log and access log, and whatever else was printed."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self) -> str:
        """What to show of the log when a test has failed."""
        lines = self.log().splitlines()
        left_out = len(lines) - LOG_LINES_SHOWN
        return "\n".join([f"({left_out} lines)"] * (left_out > 0) + lines[-LOG_LINES_SHOWN:])

    def wait_for_log(self, pattern: str, timeout: float = 30, *, after: int = 0) -> re.Match[str]:
        """Wait for a regular expression in the log from character `after` on, such as an earlier `len(server.log())`."""

        def found() -> re.Match[str] | None:
            ended = self.process.poll() is not None
            match = re.search(pattern, self.log()[after:], re.MULTILINE)
            if match is None and ended:
                self._assert_running()
            return match

        match = wait_until(found, timeout, lambda: f"{pattern!r} in the log\n{self.log_tail()}")
        assert match is not None
        return match

    def _assert_running(self) -> None:
        code = self.process.poll()
        assert code is None, f"gunicorn has ended with exit code {code}\n{self.log_tail()}"

    def manage(
        self, *arguments: str, stdin: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run `manage.py` as a person would beside this server, and return what it printed."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={name: value for name, value in self.env.items() if name != MARK},
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def signal(self, number: int, *, group: bool = False) -> None:
        """Signal the arbiter, or every process of its group as Ctrl-C does."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 60) -> int:
        """Wait for the end of gunicorn and return its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"gunicorn still runs after {timeout:g} s\n{self.log_tail()}") from None

    def wait_gone(self, timeout: float = 30) -> None:
        """Wait until no process of this server is left."""
        wait_until(
            lambda: not self.processes(), timeout, lambda: f"the end of {self.processes()}\n{self.log_tail()}"
        )

    def stop(self, timeout: float = 60) -> int:
        """Stop it by TERM if it runs, wait until nothing of it is left, and return its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        code = self.wait(timeout)
        self.wait_gone()
        return code

    def finish(self) -> None:
        """Stop it and clean up.

        Raises:
            AssertionError: It did not end, or left a process, or its log has a traceback.
        """
        try:
            if self._process is not None:
                self.stop()
        finally:
            self.kill_all()
            shutil.rmtree(self.runtime_directory, ignore_errors=True)
        _, traceback, rest = self.log().partition("Traceback (most recent call last)")
        if traceback and not self.expect_traceback:
            raise AssertionError(f"in gunicorn's log: {traceback}{rest[:5000]}")

    def kill_all(self) -> None:
        """End whatever is left, so that a failed test does not disturb the next."""
        for process in self.processes():
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self._process is not None:
            self._process.wait(30)


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _process_with_mark(pid: int, mark: str) -> Process | None:
    try:
        # A zombie has an empty environment, and counts as gone.
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"{MARK}={mark}".encode() not in environment:
            return None
        command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    parent_pid = stat.rpartition(")")[2].split()[1]
    return Process(pid, int(parent_pid), command)


class RedisServer:
    """A redis-server that keeps nothing, on a free port of 127.0.0.1 and on a Unix socket.

    Args:
        directory: For its log; the socket has a directory of its own, with a short name.
        arguments: More of its options, as `"--requirepass", "secret"`.
    """

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.port = free_port()
        self.log_path = directory / f"redis-{self.port}.log"
        self.runtime_directory = Path(tempfile.mkdtemp(prefix="rt-"))
        self.socket_path = self.runtime_directory / "redis.sock"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        shutil.rmtree(self.runtime_directory, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket_path}?db=0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "Redis has not been started"
        return self._process.pid

    def start(self, timeout: float = 30) -> RedisServer:
        """Start it and wait until it takes connections."""
        assert shutil.which("redis-server"), "redis-server is not installed: `make test` installs it"
        begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._process = process = subprocess.Popen(
                [
                    *("redis-server", "--bind", "127.0.0.1", "--port", str(self.port)),
                    *("--unixsocket", str(self.socket_path), "--dir", str(self.runtime_directory)),
                    *("--save", "", "--appendonly", "no", *self._arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def ready() -> bool:
            log = self.log_path.read_bytes()[begin:].decode(errors="replace")
            assert process.poll() is None, f"redis-server has ended\n{log}"
            return "eady to accept connections" in log

        wait_until(ready, timeout, "redis-server")
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)
        self._process = None

    def restart(self) -> None:
        """Start it again on the same port, empty, after a stop if it still runs."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it fall silent: its connections stay open and nothing is answered until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A client of redis-py; close it, or use it as a context manager."""
        return redis.Redis.from_url(self.url, decode_responses=True)

    def cli(self, *arguments: str, stdin: str | None = None) -> str:
        """Run redis-cli and return what it printed."""
        command = ["redis-cli", "-p", str(self.port), *arguments]
        return subprocess.run(
            command, input=stdin or "", capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, for servers that cannot choose one themselves."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
