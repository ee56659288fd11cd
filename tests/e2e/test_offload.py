"""An application gives its connection away: what the client, gunicorn and the logs see."""

from __future__ import annotations

import http.client
import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients import SSEClient, connect
from tests.e2e.conftest import PLAIN_APP, flowing
from tests.servers import GunicornServer, free_port
from tests.waiting import wait_until


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


pytestmark = [pytest.mark.e2e, pytest.mark.worker]


def test_any_wsgi_application_can_offload_a_stream(plain, publish):
    server = plain()

    with SSEClient(server.address, "/sse/news") as client:
        publish(server, "news", "hello\nworld")

        assert client.next_event().data == "hello\nworld"
    assert client.status == 200


def test_status_headers_and_cookies_are_the_applications(plain):
    server = plain()

    with SSEClient(server.address, "/sse/news") as client:
        assert client.headers["Content-Type"] == "text/event-stream"
        assert client.headers["Set-Cookie"] == "a=b"
        assert client.headers["Connection"] == "close"
        assert client.headers["Transfer-Encoding"] is None


def test_first_byte_comes_at_once_and_sets_a_jittered_retry(plain):
    server = plain()
    retries = set()

    for _ in range(5):
        with SSEClient(server.address, "/sse/news") as client:
            client.read_until(lambda: client.retry)
            retries.add(client.retry)

    assert all(1000 <= retry <= 5000 for retry in retries)
    assert len(retries) > 1


def test_several_channels_come_on_one_connection_in_order(plain, publish):
    server = plain()

    with SSEClient(server.address, "/sse/one/two/three") as client:
        for number in range(30):
            publish(server, ("one", "two", "three")[number % 3], f"message {number}")

        received = [event.data for event in client.next_events(30)]
    assert received == [f"message {number}" for number in range(30)]


def test_access_log_and_hub_log_have_a_line_each(plain, publish):
    server = plain()

    with SSEClient(server.address, "/sse/news") as client:
        server.wait_for_log(r'"GET /sse/news HTTP/1.1" 200 0')
        publish(server, "news", "hello")
        client.next_event()

    line = server.wait_for_log(r"sse news from (\S+): (\S+) s, (\d+) messages, (\d+) bytes, the client left")
    assert int(line[3]) == 1
    assert int(line[4]) == len(client.raw)


def test_answered_connection_is_handed_back_and_kept_alive(plain):
    server = plain("-w", "2")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    with flowing(server, "chat"):
        for _ in range(5):
            connection.request("GET", "/poll/chat")
            assert connection.getresponse().read().decode().startswith("message")
            sock = connection.sock
            connection.request("GET", "/ordinary")
            assert connection.getresponse().read() == b"pong"
            assert connection.sock is sock, "the connection was not kept"
    connection.close()


def test_request_sent_behind_an_offloaded_one_is_answered_after_the_hand_back(plain, publish):
    server = plain()
    requests = (
        b"GET /poll/chat HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /ordinary HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )

    with connect(server.address) as client:
        client.sendall(b"".join(requests))
        wait_until(lambda: publish(server, "chat", "hello"))
        answer = read_all(client)

    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"\r\n\r\nhello" in answer
    assert answer.endswith(b"pong")


def test_request_cut_anywhere_is_served(plain):
    server = plain()
    request = b"POST /upper HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"

    for cut in range(1, len(request)):
        with connect(server.address) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(request[:cut])
            client.sendall(request[cut:])
            assert read_all(client).endswith(b"\r\n\r\nhello"), f"cut at {cut}"


def test_pipelined_ordinary_requests_are_all_answered(plain):
    server = plain()
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    with connect(server.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4 + last)

        assert read_all(client).count(b"pong") == 5


def test_stream_works_through_a_unix_socket(plain, publish, bus_directory):
    server = plain(bind=f"unix:{bus_directory}/gunicorn.sock")

    with SSEClient(server.address, "/sse/news") as client:
        publish(server, "news", "hello")

        assert client.next_event().data == "hello"


@pytest.mark.parametrize("option", ["--preload", "--reuse-port", "--reload"])
def test_ordinary_options_of_gunicorn_work(plain, publish, option):
    server = plain(option, "-w", "2", "--threads", "2", bind=f"127.0.0.1:{free_port()}")

    with SSEClient(server.address, "/sse/news") as client:
        publish(server, "news", "hello")

        assert client.next_event().data == "hello"


def test_hub_runs_as_the_user_that_gunicorn_is_told(plain, publish, bus_directory, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can change the user")
    user = pwd.getpwnam("nobody")
    shutil.chown(bus_directory, user.pw_uid, user.pw_gid)
    server = plain(
        *("--user", user.pw_name, "--group", str(user.pw_gid)),
        prefix=readable_interpreter(tmp_path),
    )

    with SSEClient(server.address, "/sse/news") as client:
        publish(server, "news", "hello")
        assert client.next_event().data == "hello"

    (hub,) = server.hub_pids()
    assert os.stat(f"/proc/{hub}").st_uid == user.pw_uid


def readable_interpreter(directory: Path) -> list[str]:
    """Return a command to run gunicorn under that lets every user run this interpreter.

    One below /root is moved out of it in a mount namespace of its own.
    """
    base = Path(sys.base_prefix).resolve()
    closed = next((path for path in reversed(base.parents) if not path.stat().st_mode & 0o001), None)
    if closed is None:
        return []
    script = (
        f"mount --bind {base} {directory} && mount -t tmpfs -o mode=755 none {closed} && mkdir -p {base} "
        f'&& mount --bind {directory} {base} && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def test_two_hubs_share_the_connections_and_each_gets_every_message(plain, publish):
    server = plain(env={"GUNICORN_REALTIME_HUBS": "2"})
    wait_until(lambda: len(server.hub_pids()) == 2)

    clients = [SSEClient(server.address, "/sse/news") for _ in range(8)]
    publish(server, "news", "hello")

    assert [client.next_event().data for client in clients] == ["hello"] * 8
    for client in clients:
        client.close()
    server.wait_for_log(r"(?s)(sse news from .*){8}")
    pids = set(re.findall(r"\[(\d+)\] \[INFO\] sse news", server.log()))
    assert len(pids) == 2


def test_tls_in_gunicorn_is_answered_501_with_a_sentence(tmp_path, bus_directory):
    certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    subject = ["-subj", "/CN=localhost", "-days", "2"]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            *subject,
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    server = GunicornServer(
        tmp_path,
        PLAIN_APP,
        "--certfile",
        certificate,
        "--keyfile",
        key,
        env={"BUS": f"local:{bus_directory}"},
    )
    server._answers = lambda: True  # it speaks TLS, which the harness does not

    with server:
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=30)
        connection.request("GET", "/sse/news")
        response = connection.getresponse()

        assert response.status == 501
        assert "proxy" in response.read().decode()
        connection.close()


def test_unknown_setting_is_named_at_the_start(plain):
    with pytest.raises(AssertionError, match="GUNICORN_REALTIME_HUB is not a setting"):
        plain(env={"GUNICORN_REALTIME_HUB": "2"})
