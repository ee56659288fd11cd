"""Every limit, each with what the client is told."""

from __future__ import annotations

import os
import signal

import pytest

from tests.clients import SSEClient, Swarm, connect, http_get, request_head
from tests.e2e.conftest import flowing
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def assert_refused(client: SSEClient) -> None:
    """An EventSource comes back only after a response with status 200."""
    client.wait_closed()
    assert client.status == 200
    assert client.headers["Content-Type"] == "text/event-stream"
    assert 1000 <= client.retry <= 5000
    assert client.body.startswith(b"retry: ")


def test_hub_holds_no_more_connections_than_it_may(plain, publish):
    server = plain(env={"GUNICORN_REALTIME_CONNECTIONS": "3"})
    held = [SSEClient(server.address, "/sse/news") for _ in range(3)]

    with SSEClient(server.address, "/sse/news") as refused:
        assert_refused(refused)
    held.pop().close()
    server.wait_for_log("the client left")
    held.append(SSEClient(server.address, "/sse/news"))

    publish(server, "news", "hello")
    assert [client.next_event().data for client in held] == ["hello"] * 3
    for client in held:
        client.close()


def test_refusal_keeps_the_applications_other_headers(plain):
    """Without its CORS headers an EventSource of another origin would not come back."""
    server = plain(env={"GUNICORN_REALTIME_CONNECTIONS": "1"})

    with SSEClient(server.address, "/sse/news"), SSEClient(server.address, "/sse/news") as refused:
        assert_refused(refused)
        assert refused.headers["Set-Cookie"] == "a=b"
        assert refused.headers.get_all("Content-Type") == ["text/event-stream"]


def test_refused_poll_is_told_when_to_come_back(plain):
    server = plain(env={"GUNICORN_REALTIME_CONNECTIONS": "1"})

    with SSEClient(server.address, "/sse/news"), SSEClient(server.address, "/poll/news") as refused:
        refused.wait_closed()

        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) >= 1


def test_one_address_holds_no_more_connections_than_it_may(plain):
    server = plain(
        "--forwarded-allow-ips", "127.0.0.9", env={"GUNICORN_REALTIME_CONNECTIONS_PER_ADDRESS": "2"}
    )
    held = [SSEClient(server.address, "/sse/news", source="127.0.0.2") for _ in range(2)]

    with SSEClient(server.address, "/sse/news", source="127.0.0.2") as refused:
        assert_refused(refused)
    with SSEClient(server.address, "/sse/news", source="127.0.0.3") as other:
        other.read_until(lambda: other.retry)
        assert not other.closed
    for client in held:
        client.close()


def test_proxy_may_hold_as_many_connections_as_it_likes(plain):
    server = plain(
        "--forwarded-allow-ips",
        "127.0.0.0/8,127.0.0.9",
        env={"GUNICORN_REALTIME_CONNECTIONS_PER_ADDRESS": "2"},
    )

    clients = [SSEClient(server.address, "/sse/news", source="127.0.0.9") for _ in range(5)]

    for client in clients:
        client.read_until(lambda: client.retry)  # noqa: B023
        assert not client.closed
        client.close()


def test_one_user_holds_no_more_connections_than_each_may(plain):
    server = plain(env={"GUNICORN_REALTIME_CONNECTIONS_PER_USER": "2"})
    held = [SSEClient(server.address, "/sse/news?user=7") for _ in range(2)]

    with SSEClient(server.address, "/sse/news?user=7") as refused:
        assert_refused(refused)
    websocket = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    websocket["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    response = http_get(server.address, "/websocket/news?user=7", websocket)
    assert response.status == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert (response.headers["Set-Cookie"], response.headers["Upgrade"]) == ("a=b", None)
    with SSEClient(server.address, "/sse/news?user=8") as other:
        other.read_until(lambda: other.retry)
        assert not other.closed
    for client in held:
        client.close()


def test_hub_refuses_before_its_descriptors_run_out(plain):
    server = plain(prefix=["prlimit", "--nofile=400:400"])

    with Swarm(server.address, "/sse/news", 140), SSEClient(server.address, "/sse/news") as client:
        client.read_until(lambda: client.retry)
        server.wait_for_log("holds up to 144 connections")
        more = [SSEClient(server.address, "/sse/news") for _ in range(10)]
        for refused in more[-3:]:
            assert_refused(refused)
        for each in more:
            each.close()


def test_full_queue_refuses_within_two_seconds_and_leaves_the_threads_to_the_site(plain):
    server = plain("--threads", "2")
    hub = wait_until(server.hub_pids)[0]
    os.kill(hub, signal.SIGSTOP)
    path = "/sse/" + "x" * 150
    clients = []
    try:
        # The stopped hub takes nothing, so the queue fills.
        while "the queue of hub 0 is full" not in server.log():
            client = connect(server.address)
            client.sendall(request_head(path, {"Accept": "*/*"}))
            clients.append(client)
            assert len(clients) < 5000
        for _ in range(10):
            with SSEClient(server.address, path) as refused:
                assert_refused(refused)
        assert http_get(server.address, "/").body == b"pong"
    finally:
        os.kill(hub, signal.SIGCONT)
        for client in clients:
            client.close()


def test_message_larger_than_the_limit_is_dropped_and_the_stream_lives_on(plain, publish):
    server = plain(env={"GUNICORN_REALTIME_MESSAGE_SIZE": "1000"})

    with SSEClient(server.address, "/sse/news") as client:
        publish(server, "news", "x" * 1001)
        publish(server, "news", "small")

        assert client.next_event().data == "small"
    server.wait_for_log("A message on 'news' was dropped: it has 1001 bytes, more than 1000")


def test_client_that_never_reads_is_cut_and_delays_nobody(plain, publish):
    feed_size = 1024 * 1024
    server = plain(env={"GUNICORN_REALTIME_FEED_SIZE": str(feed_size)})
    hub = wait_until(server.hub_pids)[0]
    message = "x" * 10_000

    with (
        SSEClient(server.address, "/sse/news", receive_buffer=4096) as slow,
        Swarm(server.address, "/sse/news", 200) as swarm,
    ):
        for number in range(1000):
            publish(server, "news", message)
            swarm.wait_all(number - 20)  # the good ones read in a single thread
        swarm.wait_all(1000)
        assert swarm.differences([message] * 1000) == []

        line = server.wait_for_log(r"sse news from .*, (\d+) messages, (\d+) bytes, slow client")
        # What it had been sent lay in the kernel's buffers: those of a connection are bounded too.
        assert int(line[2]) < 1024 * 1024
        assert memory_of(hub) < 200 * 1024 * 1024
        slow.wait_closed()


def memory_of(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_client_that_takes_nothing_for_too_long_is_cut(plain, publish):
    server = plain(env={"GUNICORN_REALTIME_WRITE_TIMEOUT": "1"})

    with SSEClient(server.address, "/sse/news", receive_buffer=4096):
        for _ in range(100):
            publish(server, "news", "x" * 10_000)

        server.wait_for_log("sse news from .*(took nothing for 1 s|Connection timed out)")


def test_client_that_lags_for_a_while_gets_everything_in_order(plain, publish):
    server = plain()
    messages = [f"{number} " + "x" * 5000 for number in range(400)]

    with SSEClient(server.address, "/sse/news", receive_buffer=4096) as slow:
        for message in messages:
            publish(server, "news", message)

        assert [event.data for event in slow.next_events(400)] == messages


def test_client_that_sends_on_a_stream_is_cut(plain):
    server = plain()

    with SSEClient(server.address, "/sse/news") as client:
        with pytest.raises(OSError):
            for _ in range(1000):
                client.sock.sendall(b"x" * 10_000)
        server.wait_for_log("the client sent more than 65536 bytes")


def test_silent_stream_gets_heartbeats(plain):
    server = plain()

    with SSEClient(server.address, "/sse/news?heartbeat=1") as client:
        client.read_until(lambda: len(client.comments) >= 2)

    assert client.raw.endswith(b":\n")


def test_load_of_messages_reaches_lagging_and_quick_clients_alike(plain):
    server = plain()

    with Swarm(server.address, "/sse/news", 50) as swarm, flowing(server, rate=500) as flow:
        swarm.wait_all(500)
        published = flow.stop()
        swarm.wait_all(len(published))

        assert swarm.differences(published) == []
