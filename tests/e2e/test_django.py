"""A Django site under load: streams hold no thread and no database connection."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.clients import SSEClient, Swarm, allow_open_files, http_get
from tests.e2e.conftest import flowing
from tests.servers import GunicornServer

pytestmark = [pytest.mark.e2e, pytest.mark.worker]


def database_connections(server: GunicornServer) -> int:
    """Count the descriptors of the database in all processes of the server."""
    database = server.env["DATABASE"]
    count = 0
    for process in server.processes():
        directory = Path(f"/proc/{process.pid}/fd")
        count += sum(os.readlink(link) == database for link in directory.iterdir() if link.is_symlink())
    return count


def test_two_threads_hold_two_thousand_streams_and_answer_every_page(site):
    allow_open_files(4000)
    server = site("--threads", "2")
    stop = threading.Event()
    answers: list[int] = []

    def request_pages() -> None:
        while not stop.is_set():
            answers.append(http_get(server.address, "/").status)

    requests = threading.Thread(target=request_pages)
    requests.start()
    try:
        with Swarm(server.address, "/events", 2000) as swarm:
            assert database_connections(server) <= 2
            assert http_get(server.address, "/publish?data=hello").body == b"published"
            swarm.wait_all(1)

            assert swarm.differences(["hello"]) == []
            assert swarm.disconnects == []
            assert database_connections(server) <= 2
    finally:
        stop.set()
        requests.join()
    assert len(answers) > 100
    assert set(answers) == {200}


def test_view_that_uses_all_threads_does_not_hold_up_the_streams(site):
    server = site("--threads", "2")
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            http_get(server.address, "/burn?seconds=0.5")

    burners = [threading.Thread(target=burn) for _ in range(4)]
    with Swarm(server.address, "/events", 50) as swarm:
        for burner in burners:
            burner.start()
        try:
            with flowing(server, rate=50) as flow:
                swarm.wait_all(200)
                published = flow.stop()
            swarm.wait_all(len(published))
            assert swarm.differences(published) == []
        finally:
            stop.set()
            for burner in burners:
                burner.join()


def test_publish_in_a_view_reaches_the_streams(site):
    server = site()

    with SSEClient(server.address, "/events") as client:
        http_get(server.address, "/publish?data=hello")

        assert client.next_event().data == "hello"
        assert client.headers["Cache-Control"] == "no-store"
        assert client.headers["X-Accel-Buffering"] == "no"
        assert client.headers["Content-Encoding"] is None
