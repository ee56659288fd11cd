"""Request heads are waited for on the poller, not on a thread."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.clients import connect, http_get

pytestmark = [pytest.mark.e2e, pytest.mark.worker]

HALF_A_HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow"


def test_fifty_half_sent_heads_delay_nobody_on_two_threads(plain):
    server = plain("--threads", "2", env={"GUNICORN_REALTIME_HEAD_TIMEOUT": "60"})
    slow = [connect(server.address) for _ in range(50)]
    for client in slow:
        client.sendall(HALF_A_HEAD)

    # Each would wait for a slow client's next byte if one of them held a thread.
    for _ in range(20):
        assert http_get(server.address, "/").body == b"pong"

    for client in slow:
        client.sendall(b": no\r\nConnection: close\r\n\r\n")
    for client in slow:
        assert b"".join(iter(lambda: client.recv(4096), b"")).endswith(b"pong")  # noqa: B023
        client.close()


def test_head_that_does_not_come_is_answered_408(plain):
    server = plain(env={"GUNICORN_REALTIME_HEAD_TIMEOUT": "0.5"})

    with connect(server.address) as client:
        client.sendall(HALF_A_HEAD)

        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_connection_that_stays_silent_is_closed(plain):
    server = plain(env={"GUNICORN_REALTIME_HEAD_TIMEOUT": "0.5"})

    with connect(server.address) as client:
        assert client.recv(4096) == b""


def test_head_without_end_is_answered_431(plain):
    server = plain(env={"GUNICORN_REALTIME_HEAD_SIZE": "20000"})

    with connect(server.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_001)

        assert client.recv(4096).startswith(b"HTTP/1.1 431 ")


def test_half_sent_head_does_not_hold_up_a_stop(plain):
    server = plain("--graceful-timeout", "60")

    with connect(server.address) as client:
        client.sendall(HALF_A_HEAD)
        server.stop(timeout=30)


def test_slow_head_on_a_kept_alive_connection_holds_no_thread(plain):
    server = plain("--threads", "1", "--keep-alive", "60", env={"GUNICORN_REALTIME_HEAD_TIMEOUT": "60"})

    with connect(server.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while not received.endswith(b"pong"):
            received += client.recv(4096)
        client.sendall(HALF_A_HEAD)

        assert http_get(server.address, "/").body == b"pong"


def test_clients_that_do_not_close_their_side_delay_nobody(plain):
    server = plain("--threads", "2")

    with ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(connect(server.address))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = b""
            while not received.endswith(b"pong"):
                received += client.recv(4096)
        # gunicorn's own main loop would wait 2 s for each of the five in turn.
        assert http_get(server.address, "/", timeout=5).body == b"pong"


def test_answer_to_a_client_that_still_sends_arrives_whole(plain):
    server = plain()

    with connect(server.address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")
        client.sendall(b"x" * 10_000)  # more than it said

        assert b"".join(iter(lambda: client.recv(4096), b"")).endswith(b"hello")
