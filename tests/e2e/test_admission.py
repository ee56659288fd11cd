"""When many streams want to begin at once, they wait for each other and the site's pages do not."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.clients import SSEClient, connect, http_get

pytestmark = [pytest.mark.e2e, pytest.mark.worker]

UPGRADE = b"GET /gated HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def ask(server, origin: bytes = b""):
    """Send the request of an EventSource, and do not wait for the answer."""
    client = connect(server.address)
    client.sendall(b"GET /gated HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n" + origin + b"\r\n")
    return client


def test_pages_are_answered_while_streams_wait_for_slow_views(site):
    server = site("--threads", "2")
    with ExitStack() as stack:
        clients = [stack.enter_context(ask(server)) for _ in range(20)]

        assert http_get(server.address, "/").body == b"pong"

        http_get(server.address, "/release")
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_streams_that_are_too_many_to_wait_are_told_to_come_back(site):
    server = site("--threads", "2", "--worker-connections", "10")
    with ExitStack() as stack:
        waiting = [stack.enter_context(ask(server)) for _ in range(1 + 5)]

        with SSEClient(server.address, "/gated") as refused:
            refused.wait_closed()
            assert refused.status == 200
            assert refused.complete
            assert refused.retry is not None
        with connect(server.address) as client:
            client.sendall(UPGRADE)
            assert client.recv(4096).startswith(b"HTTP/1.1 503 ")
        # Refused without the site's CORS headers, an EventSource of another origin would not come back.
        waiting.append(stack.enter_context(ask(server, b"Origin: https://elsewhere.example\r\n")))

        http_get(server.address, "/release")
        for client in waiting:
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
