"""The harness of the end-to-end tests must not lie either: it sees what a server leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.clients import Event, SSEClient, StreamClosed, Swarm, http_get
from tests.servers import GunicornServer

pytestmark = pytest.mark.e2e

APP = """
def app(environ, start_response):
    if environ["PATH_INFO"] == "/error":
        raise RuntimeError("an error of the application")
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    return [b"retry: 100\\n\\n"] + [b"id: %d\\ndata: %d\\n\\n" % (number, number) for number in range(5)]
"""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "application.py").write_text(APP)
    with GunicornServer(
        tmp_path, "application:app", "--threads", "2", worker_class="gthread", python_path=tmp_path
    ) as server:
        yield server


def test_client_reads_events_to_the_end_of_the_stream(server):
    with SSEClient(server.address, "/") as client:
        assert client.status == 200
        assert client.next_event() == Event("message", "0", "0")
        assert client.retry == 100
        assert [event.data for event in client.next_events(4)] == ["1", "2", "3", "4"]
        with pytest.raises(StreamClosed):
            client.next_event()
        assert client.complete


def test_clients_of_a_swarm_come_back_when_they_are_told_to(server):
    with Swarm(server.address, lambda number: f"/{number}", 3, reconnect_after=0.01) as swarm:
        swarm.wait_all(10)

    assert all(len(client.connects) >= 2 for client in swarm.clients)
    assert swarm.differences(["0", "1", "2", "3", "4"])[0].startswith("client 0: lost 0, doubled or foreign ")


def test_killed_worker_is_seen_to_be_replaced(server):
    [pid] = server.worker_pids()

    os.kill(pid, signal.SIGKILL)
    server.wait_for_log(r"Booting worker", after=len(server.log()))

    assert http_get(server.address).status == 200
    assert server.worker_pids() not in ([], [pid])
    assert server.hub_pids() == []


def test_process_that_outlives_its_server_is_seen(server):
    with subprocess.Popen(["sleep", "60"], env=server.env) as left_behind:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0

        assert [process.pid for process in server.processes()] == [left_behind.pid]
        with pytest.raises(AssertionError, match="sleep 60"):
            server.wait_gone(timeout=0.1)
        left_behind.kill()


def test_traceback_in_the_log_is_seen(server):
    assert http_get(server.address, "/error").status == 500

    with pytest.raises(AssertionError, match="an error of the application"):
        server.finish()
    server.expect_traceback = True


def test_server_that_does_not_start_says_why(tmp_path):
    server = GunicornServer(tmp_path, "nowhere:app", worker_class="gthread")

    with pytest.raises(AssertionError, match="No module named 'nowhere'"):
        server.start()
    server.finish()
