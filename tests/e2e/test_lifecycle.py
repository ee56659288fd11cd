"""What may end, and what a stream lives through."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from gunicorn_realtime.bus.client import Publisher
from tests.clients import SSEClient, Swarm, http_get
from tests.e2e.conftest import bus_of, flowing
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.worker]


def hub_of(server) -> int:
    (pid,) = wait_until(server.hub_pids)
    return pid


def kill_a_worker(server):
    victim = server.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(server.worker_pids()) == 2 and victim not in server.worker_pids())


def hang_up(server):
    before = set(server.worker_pids())
    server.signal(signal.SIGHUP)
    wait_until(lambda: len(server.worker_pids()) == 2 and not before & set(server.worker_pids()))


def use_up_max_requests(server):
    before = set(server.worker_pids())

    def all_are_new() -> bool:
        try:
            http_get(server.address, "/")
        except ConnectionError:
            pass  # gunicorn 23 drops what it has accepted and not yet read when a worker ends
        return not before & set(server.worker_pids())

    wait_until(all_are_new)


def touch_a_module(server):
    before = set(server.worker_pids())
    module = Path(server.env["PYTHONPATH"]) / "reloaded_app.py"

    def all_are_new() -> bool:
        module.touch()  # again: a worker that has just begun sees only what changes after its first look
        return len(server.worker_pids()) == 2 and not before & set(server.worker_pids())

    wait_until(all_are_new, timeout=60)


def hang_a_worker(server):
    before = set(server.worker_pids())
    os.kill(server.worker_pids()[0], signal.SIGSTOP)
    wait_until(lambda: before - set(server.worker_pids()) and len(server.worker_pids()) == 2, timeout=60)


@pytest.mark.parametrize(
    ("disturb", "options"),
    [
        (kill_a_worker, []),
        (hang_up, []),
        (use_up_max_requests, ["--max-requests", "20"]),
        (touch_a_module, ["--reload"]),
        (hang_a_worker, ["--timeout", "3"]),
    ],
)
def test_no_stream_is_dropped_and_no_message_lost_when_workers_go(
    gunicorn, bus_directory, tmp_path, disturb, options
):
    shutil.copy(Path(__file__).parent / "plain_app.py", tmp_path / "reloaded_app.py")
    bus = {"BUS": f"local:{bus_directory}"}
    server = gunicorn("reloaded_app:application", "-w", "2", *options, env=bus, python_path=tmp_path)
    server.wait_for_log("serving the local bus")
    hub = hub_of(server)

    with Swarm(server.address, "/sse/news", 200) as swarm:
        with flowing(server, rate=20) as flow:
            swarm.wait_all(10)
            disturb(server)
            disturb(server)
            swarm.wait_all(len(flow.published) + 10)
            published = flow.stop()
        swarm.wait_all(len(published))

        assert swarm.differences(published) == []
        assert swarm.disconnects == []
    assert server.hub_pids() == [hub]


def test_killed_hub_is_replaced_and_queued_handovers_are_not_lost(plain, publish):
    server = plain("-w", "2")
    hub = hub_of(server)

    with Swarm(server.address, "/sse/news", 50, reconnect_after=0) as swarm:
        os.kill(hub, signal.SIGKILL)
        swarm.wait_until(lambda: all(len(client.connects) == 2 for client in swarm.clients))
        wait_until(lambda: publish(server, "news", "after the crash"))
        swarm.wait_all(1)

        assert all(client.refusals == [] for client in swarm.clients)
    assert hub_of(server) != hub


def test_hub_is_replaced_although_a_cleaner_removed_its_lock(plain):
    server = plain()
    [directory] = server.runtime_directory.glob("gunicorn-realtime-*")
    (directory / "hub-0.lock").unlink()
    for _ in range(2):
        hub = hub_of(server)

        os.kill(hub, signal.SIGKILL)

        wait_until(lambda: server.hub_pids() and server.hub_pids() != [hub])  # noqa: B023


def test_quick_stop_waits_for_no_slow_client(plain, publish):
    server = plain("--graceful-timeout", "60")

    with SSEClient(server.address, "/sse/news", receive_buffer=4096):
        for _ in range(100):
            publish(server, "news", "x" * 10_000)
        server.signal(signal.SIGQUIT)
        assert server.wait() == 0
    server.wait_gone()


def test_term_ends_everything_cleanly(plain):
    server = plain("-w", "2")

    with Swarm(server.address, "/sse/news", 500) as swarm:
        server.signal(signal.SIGTERM)
        code = server.wait()
        swarm.wait_disconnected()

        assert code == 0
        # Who had a stream is told when to return, and not all at the same moment.
        retries = {client.parser.retry for client in swarm.clients}
        assert len(retries) > 100
    server.wait_gone()
    assert not [path for path in server.runtime_directory.iterdir() if path != server.home]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_whole_group_ends_everything(plain, number):
    server = plain("-w", "2")

    with Swarm(server.address, "/sse/news", 50) as swarm:
        server.signal(number, group=True)
        assert server.wait() == 0
        swarm.wait_disconnected()

        assert all(client.parser.retry for client in swarm.clients)
    server.wait_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_quick_stop_ends_everything(plain, number):
    server = plain()

    with Swarm(server.address, "/sse/news", 50) as swarm:
        server.signal(number)
        assert server.wait() == 0
        swarm.wait_disconnected()
    server.wait_gone()


def test_arbiter_as_first_process_of_a_container_leaves_after_the_hub(plain):
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare(1) for a PID namespace")
    server = plain(prefix=["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])

    with Swarm(server.address, "/sse/news", 50) as swarm:
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait() == 0
        swarm.wait_disconnected()

        # The goodbye was sent: the kernel had not killed the hub together with the arbiter.
        assert all(client.parser.retry for client in swarm.clients)
        assert server.log().count("the hub stopped") == 50
    server.wait_gone()


def test_killed_arbiter_takes_the_hub_and_the_runtime_directory_with_it(plain):
    server = plain()

    with Swarm(server.address, "/sse/news", 10) as swarm:
        server.signal(signal.SIGKILL)
        swarm.wait_disconnected()
        server.wait_gone()

    assert not list(server.runtime_directory.glob("gunicorn-realtime-*"))


def test_forked_child_of_the_application_does_not_keep_a_hub_alive(gunicorn, bus_directory, tmp_path):
    (tmp_path / "forking_app.py").write_text(
        "import os, time\n"
        "from tests.e2e.plain_app import application\n"
        "if os.fork() == 0:\n"
        "    time.sleep(20)\n"
        "    os._exit(0)\n"
    )
    server = gunicorn("forking_app:application", env={"BUS": f"local:{bus_directory}"}, python_path=tmp_path)
    hub_of(server)

    server.signal(signal.SIGKILL)

    wait_until(lambda: not server.hub_pids(), timeout=10)
    server.kill_all()


def test_usr2_starts_a_second_gunicorn_whose_streams_outlive_the_first(plain, bus_directory):
    server = plain("--pid", f"{bus_directory}/pid")
    old_hub = hub_of(server)

    with SSEClient(server.address, "/sse/news") as old:
        server.signal(signal.SIGUSR2)
        wait_until(lambda: len(server.hub_pids()) == 2)
        new_arbiter = int(wait_until(lambda: _read(f"{bus_directory}/pid.2")))
        # Both accept; connections until the new one has some.
        clients = [SSEClient(server.address, "/sse/news") for _ in range(30)]
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        old.wait_closed()

    wait_until(lambda: old_hub not in server.hub_pids())
    publisher = Publisher(bus_of(server))
    wait_until(lambda: _publishes(publisher))
    with SSEClient(server.address, "/sse/news") as new:
        publisher.publish("news", b"hello")
        assert new.next_event().data == "hello"
    publisher.close()
    for client in clients:
        client.close()
    os.kill(new_arbiter, signal.SIGTERM)
    server.wait_gone()


def _read(path: str) -> str:
    return Path(path).read_text().strip() if os.path.exists(path) else ""


def _publishes(publisher: Publisher) -> bool:
    from gunicorn_realtime.errors import BusUnavailable

    try:
        return publisher.publish("probe", b"") >= 0
    except BusUnavailable:
        return False


def test_hang_up_does_not_drain_the_hub(plain):
    server = plain()

    with SSEClient(server.address, "/sse/news") as client:
        before = server.worker_pids()
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.worker_pids() and not set(before) & set(server.worker_pids()))

        with pytest.raises(TimeoutError):
            client.next_event(timeout=0.5)
        assert not client.closed


def test_subprocess_of_the_application_inherits_no_descriptor(gunicorn, bus_directory, tmp_path):
    (tmp_path / "spawning_app.py").write_text(
        "import subprocess\n"
        "def application(environ, start_response):\n"
        "    out = subprocess.run(['ls', '-l', '/proc/self/fd'], capture_output=True, close_fds=False).stdout\n"
        "    start_response('200 OK', [('Content-Length', str(len(out)))])\n"
        "    return [out]\n"
    )
    server = gunicorn("spawning_app:application", python_path=tmp_path)

    listing = http_get(server.address, "/").text

    assert "socket:" not in listing
