"""The hub and its bus: real Redis, restarted, silent, or out of reach."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from gunicorn_realtime.bus import message
from tests.clients import SSEClient, Swarm
from tests.e2e.conftest import flowing
from tests.servers import RedisServer, free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def wait_for_hub(redis_server) -> None:
    """Wait until a hub follows its control channel."""
    with redis_server.client() as client:
        wait_until(lambda: dict(client.pubsub_numsub("rt:hubs"))["rt:hubs"] >= 1)


@pytest.mark.parametrize("kind", ["url", "unix_url"])
def test_what_redis_cli_publishes_reaches_the_clients(plain, redis_server, kind):
    server = plain(bus=getattr(redis_server, kind))

    with SSEClient(server.address, "/sse/lotofnews") as client:
        redis_server.cli("publish", "lotofnews", "hello")

        assert client.next_event().data == "hello"


def test_redis_over_tls_works(plain, tmp_path):
    certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    tls_port = str(free_port())
    arguments = ["--tls-port", tls_port, "--tls-cert-file", certificate, "--tls-key-file", key]
    with RedisServer(tmp_path, *arguments, "--tls-auth-clients", "no") as redis_server:
        server = plain(bus=f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}")
        with SSEClient(server.address, "/sse/news") as client:
            redis_server.cli("publish", "news", "hello")

            assert client.next_event().data == "hello"


def test_hub_has_two_connections_to_redis_whatever_is_followed(plain, redis_server, publish):
    server = plain(bus=redis_server.url)

    with Swarm(server.address, lambda number: f"/sse/news/channel_{number}", 100) as swarm:
        publish(server, "news", "hello")
        swarm.wait_all(1)
        with redis_server.client() as client:
            hub = [c for c in client.client_list() if int(c["sub"]) > 0]
            assert len(hub) == 1
            assert int(hub[0]["sub"]) == 103  # and its own, and that of all hubs
            publisher, ours = 1, 1
            assert len(client.client_list()) <= 2 + publisher + ours


def test_channel_is_left_when_nobody_follows_it_any_more(plain, redis_server):
    server = plain(bus=redis_server.url)

    with redis_server.client() as client:
        with SSEClient(server.address, "/sse/news"):
            assert dict(client.pubsub_numsub("news")) == {"news": 1}
        wait_until(lambda: dict(client.pubsub_numsub("news")) == {"news": 0}, timeout=60)
        with SSEClient(server.address, "/sse/news") as again:
            client.publish("news", "hello")
            assert again.next_event().data == "hello"


def test_redis_restart_cuts_nobody_and_messages_come_again(plain, redis_server):
    server = plain(bus=redis_server.url)

    with Swarm(server.address, "/sse/news", 200) as swarm, flowing(server, rate=20):
        swarm.wait_all(10)
        redis_server.kill()
        had = max(len(client.data) for client in swarm.clients)
        redis_server.start()
        swarm.wait_all(had + 20)

        assert swarm.disconnects == []
        # What came was in order, and none came twice.
        for client in swarm.clients:
            numbers = [int(data.removeprefix("message ")) for data in client.data]
            assert numbers == sorted(set(numbers))


def test_hub_killed_under_load_serves_who_comes_back(plain, redis_server):
    server = plain(bus=redis_server.url)
    (hub,) = wait_until(server.hub_pids)

    with (
        Swarm(server.address, "/sse/news", 200, reconnect_after=0.1) as swarm,
        flowing(server, rate=20) as flow,
    ):
        swarm.wait_all(10)
        os.kill(hub, signal.SIGKILL)
        swarm.wait_until(lambda: all(len(client.connects) == 2 for client in swarm.clients))
        published_before = len(flow.published)
        had = [len(client.data) for client in swarm.clients]
        swarm.wait_until(
            lambda: all(
                len(client.data) >= before + 20 for client, before in zip(swarm.clients, had, strict=True)
            )
        )
        published = flow.stop()[published_before:]
        swarm.wait_until(lambda: all(client.data[-1] == published[-1] for client in swarm.clients))

        for client in swarm.clients:
            # From the reconnect on nothing is lost; before it, at most what came while it was away.
            assert client.data[-len(published) :] == published
            numbers = [int(data.removeprefix("message ")) for data in client.data]
            assert numbers == sorted(set(numbers))


def test_subscription_that_died_in_silence_is_noticed(plain, redis_server):
    server = plain(bus=redis_server.url)

    with SSEClient(server.address, "/sse/news") as client:
        redis_server.pause()  # its connections stay open, and nothing comes any more
        server.wait_for_log("silent|out of reach", timeout=60)
        redis_server.resume()
        wait_for_hub(redis_server)
        wait_until(lambda: redis_server.cli("publish", "news", "hello").strip() == "1")

        assert client.next_event().data == "hello"


def test_stream_opens_and_gets_messages_later_when_redis_is_down_at_first(plain, redis_server):
    redis_server.kill()
    server = plain(bus=redis_server.url)

    with SSEClient(server.address, "/sse/news") as client:
        client.read_until(lambda: client.retry)
        redis_server.start()
        wait_until(lambda: redis_server.cli("publish", "news", "hello").strip() == "1")

        assert client.next_event().data == "hello"


def test_envelope_brings_the_events_name(plain, redis_server):
    server = plain(bus=redis_server.url)

    with SSEClient(server.address, "/sse/news") as client, redis_server.client() as redis:
        redis.publish("news", message.encode(b"hello", event="greeting"))
        redis.publish("news", b"\xffRT1 garbage")
        redis.publish("news", "after")

        event = client.next_event()
        assert (event.event, event.data) == ("greeting", "hello")
        assert client.next_event().data == "after"
    server.wait_for_log("A message on 'news' was dropped")
