"""WebSockets on a real server, to the PyPI client `websockets` and to Chromium."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from gunicorn_realtime.protocols.websocket import Opcode
from tests import clients
from tests.clients import SSEClient, http_get, request_head
from tests.e2e.conftest import PLAIN_APP
from tests.e2e.test_history import KeptFlow
from tests.e2e.test_lifecycle import hang_up, kill_a_worker
from tests.e2e.test_limits import memory_of
from tests.protocols.test_websocket import frame
from tests.servers import GunicornServer
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

TIMEOUT = 30.0  # seconds

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}

LONG = "long enough to be compressed, " * 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[GunicornServer]:
    """One for all tests that leave it as it was: the plain application, on a local bus."""
    directory = tempfile.mkdtemp(prefix="rt-")
    arguments = (tmp_path_factory.mktemp("server"), PLAIN_APP, "-w", "2")
    with GunicornServer(*arguments, env={"BUS": f"local:{directory}"}) as server:
        server.wait_for_log("serving the local bus")
        yield server
    shutil.rmtree(directory)


def open_websocket(server: GunicornServer, path: str = "/websocket", **options) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}{path}", proxy=None, **options)


@pytest.fixture
def hold():
    """Open something until the end of the test: hold(context manager)."""
    with ExitStack() as stack:
        yield stack.enter_context


def receive(client: ClientConnection, count: int) -> list[str | bytes]:
    return [client.recv(TIMEOUT) for _ in range(count)]


def wait_closed(client: ClientConnection) -> tuple[int, str]:
    """Read to the end; return the close frame's code and reason."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            client.recv(TIMEOUT)
    assert caught.value.rcvd, "no close frame came"
    return caught.value.rcvd.code, caught.value.rcvd.reason


# Messages.


@pytest.mark.worker
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("query", ["", "?history=10"])
def test_echo_is_what_was_sent(server, query, compression):
    messages = [
        "hello",
        "",
        "größe 😀",
        LONG,
        b"",
        b"hello",
        bytes(range(256)),
        LONG.encode(),
        # What would be an envelope on the bus, if a client's word counted there.
        b"\xffRT1\n{}\nhello",
        b'\xffRT1epoch 7 6\n{"event": "forged"}\nhello',
        b"\xffRT1",
    ]

    with open_websocket(server, f"/websocket{query}", compression=compression) as client:
        for message in messages:
            client.send(message)

        assert receive(client, len(messages)) == messages


def test_clients_of_a_channel_talk_to_each_other_and_to_event_streams(server):
    with (
        open_websocket(server, "/websocket/room") as one,
        open_websocket(server, "/websocket/room") as two,
        SSEClient(server.address, "/sse/room") as stream,
    ):
        one.send("hello")
        assert two.recv(TIMEOUT) == "hello"
        two.send("hello yourself")

        assert receive(one, 2) == ["hello", "hello yourself"]
        assert [event.data for event in stream.next_events(2)] == ["hello", "hello yourself"]


def test_all_get_all_messages_in_one_order_under_load(server, hold):
    senders, count = 8, 100
    websockets = [hold(open_websocket(server, "/websocket/busy")) for _ in range(senders)]

    def send(name: int) -> None:
        for number in range(count):
            websockets[name].send(f"{name} {number}")

    with ThreadPoolExecutor(2 * senders) as threads:
        sent = threads.map(send, range(senders))
        received = list(threads.map(lambda client: receive(client, senders * count), websockets))
        assert list(sent) == [None] * senders

    assert received == [received[0]] * senders
    for name in range(senders):
        own = [message for message in received[0] if message.startswith(f"{name} ")]
        assert own == [f"{name} {number}" for number in range(count)]


def test_envelope_says_where_a_message_belongs(server):
    with open_websocket(server, "/websocket/kept?history=10&envelope=json") as client:
        cursor = json.loads(client.recv(TIMEOUT))
        client.send("hello")
        client.send(b"\xff")
        text, binary = map(json.loads, receive(client, 2))

    assert cursor["event"] == "cursor" and cursor["id"] < text["id"] < binary["id"]
    assert text == {"id": text["id"], "channel": "kept", "event": None, "data": "hello"}
    assert binary == {"id": binary["id"], "channel": "kept", "event": None, "data": "/w==", "base64": True}


def test_message_that_comes_with_the_request_is_not_lost(server):
    data = b""

    with clients.connect(server.address) as client:
        client.sendall(request_head("/websocket", HANDSHAKE) + frame(Opcode.TEXT, b"early"))
        while not data.endswith(b"\x81\x05early"):
            data += (more := client.recv(65536))
            assert more, "the server has closed the connection"

    assert data.startswith(b"HTTP/1.1 101 ")


# Refusals.


@pytest.mark.worker
@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Upgrade": "h2c"}, 400),
        ({"Connection": "close"}, 400),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Version": "8"}, 426),
    ],
)
def test_wrong_handshake_is_answered_by_http(server, changed, status):
    response = http_get(server.address, "/websocket", HANDSHAKE | changed)

    assert response.status == status
    assert response.headers["Sec-WebSocket-Version"] == ("13" if status == 426 else None)


def test_message_that_is_too_large_closes_with_1009(server):
    with open_websocket(server, "/websocket?max_size=1000", compression=None) as client:
        client.send("x" * 1000)
        assert client.recv(TIMEOUT) == "x" * 1000
        client.send("x" * 1001)

        assert wait_closed(client) == (1009, "a message has 1001 bytes, more than 1000")


def test_message_that_the_local_bus_does_not_take_closes_its_own_connection_alone(plain, hold):
    server = plain(env={"GUNICORN_REALTIME_MESSAGE_SIZE": "4000000"})
    path, largest = "/websocket/room?max_size=4000000&history=10", bytes(1024 * 1024)
    one, two = (hold(open_websocket(server, path, max_size=None)) for _ in range(2))

    one.send(largest)
    assert two.recv(TIMEOUT) == largest
    one.send(largest + b".")
    two.send("still here")

    assert wait_closed(one) == (1009, "a message has 1048577 bytes, more than 1048576")
    assert two.recv(TIMEOUT) == "still here"


def test_message_that_inflates_to_too_much_closes_with_1009(server):
    (hub,) = server.hub_pids()
    before = memory_of(hub)

    with open_websocket(server) as client:
        client.send(bytes(50_000_000))

        assert wait_closed(client) == (1009, "a compressed message inflates to more than 65536 bytes")
    assert memory_of(hub) - before < 10_000_000


def open_raw(server: GunicornServer, path: str = "/websocket", **options) -> socket.socket:
    """Open a WebSocket whose client is the test itself."""
    sock = clients.connect(server.address, **options)
    sock.sendall(request_head(path, HANDSHAKE))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return sock


def read_to_end(sock: socket.socket) -> bytes:
    sock.settimeout(TIMEOUT)
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def test_message_that_is_announced_as_too_large_is_not_waited_for(server):
    with open_raw(server) as client:
        client.sendall(b"\x82\xff" + (1 << 40).to_bytes(8) + b"mask")

        assert read_to_end(client)[2:4] == (1009).to_bytes(2)


def test_message_that_never_ends_closes_with_1009_before_it_is_held(server):
    """Between two fragments the client looks whether it has been answered."""
    sent = 0
    with open_raw(server) as client:
        for opcode in itertools.chain([Opcode.TEXT], itertools.repeat(Opcode.CONTINUATION)):
            client.sendall(frame(opcode, b"x" * 4096, more=True))
            sent += 4096
            if select.select([client], [], [], 0.01)[0]:
                break

        assert read_to_end(client)[2:4] == (1009).to_bytes(2)
    assert sent > 65536


def test_client_that_reads_too_slowly_is_cut(plain):
    server = plain(env={"GUNICORN_REALTIME_FEED_SIZE": "100000", "GUNICORN_REALTIME_MESSAGE_SIZE": "10000"})

    with (
        open_raw(server, "/websocket/busy", receive_buffer=4096) as slow,
        open_websocket(server, "/websocket/busy") as quick,
    ):
        while "slow client" not in server.log():
            quick.send("x" * 10_000)
            assert quick.recv(TIMEOUT) == "x" * 10_000

        assert slow.recv(1)  # it has been sent something


# What may end, and what a socket lives through.


@pytest.mark.worker
def test_sockets_live_through_workers_and_are_told_when_the_site_stops(plain, hold):
    server = plain("-w", "2")
    websockets = [hold(open_websocket(server, "/websocket/room")) for _ in range(10)]

    for number, disturb in enumerate([kill_a_worker, hang_up, kill_a_worker]):
        disturb(server)
        websockets[number].send(f"after {disturb.__name__}")
        for client in websockets:
            assert client.recv(TIMEOUT) == f"after {disturb.__name__}"
    server.signal(signal.SIGTERM)

    assert [wait_closed(client) for client in websockets] == [(1001, "")] * len(websockets)
    assert server.wait() == 0


class Returning(threading.Thread):
    """A client that comes back with the last id it has seen, until it has had the message "end"."""

    def __init__(self, server: GunicornServer) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.cursor = ""
        self.data: list[str] = []
        self.resets: list[str] = []
        self.connects = 0
        self.is_open = threading.Event()
        self.start()

    def run(self) -> None:
        while "end" not in self.data:
            try:
                self._follow()
            except (ConnectionClosed, InvalidStatus, OSError):
                pass  # the hub is gone, and its successor not there yet

    def _follow(self) -> None:
        path = f"/websocket/news?history=1000&envelope=json&since={self.cursor}"
        with open_websocket(self.server, path) as client:
            self.connects += 1
            self.is_open.set()
            for text in client:
                message = json.loads(text)
                self.cursor = message["id"] or self.cursor
                if message["event"] == "reset":
                    self.resets.append(message["data"])
                elif message["event"] is None:
                    self.data.append(message["data"])
                if message["data"] == "end":
                    return


@pytest.mark.parametrize("kind", ["local", "redis"])
def test_killed_hub_loses_nothing_for_who_returns_with_a_cursor(plain, request, kind):
    bus = None if kind == "local" else request.getfixturevalue("redis_server").url
    server = plain(bus=bus, env={"GUNICORN_REALTIME_HUBS": "2"})
    wait_until(lambda: len(server.hub_pids()) == 2, what="two hubs")
    # The hub that has the local bus takes what it has kept with it.
    owners = [pid for pid in server.hub_pids() if f"[{pid}] [INFO] serving the local bus" in server.log()]
    victim = next(pid for pid in server.hub_pids() if pid not in owners)
    returning = [Returning(server) for _ in range(6)]
    for client in returning:
        assert client.is_open.wait(TIMEOUT)

    with KeptFlow(server, rate=50) as flow:
        wait_until(lambda: all(len(client.data) >= 10 for client in returning))
        os.kill(victim, signal.SIGKILL)
        had = len(flow.published)
        wait_until(lambda: all(len(client.data) >= had + 10 for client in returning))
        published = flow.stop()
        KeptFlow(server).send("end")
    for client in returning:
        client.join(TIMEOUT)

    assert [client.data for client in returning] == [[*published, "end"]] * 6
    assert [client.resets for client in returning] == [[]] * 6
    assert any(client.connects > 1 for client in returning)


def test_client_is_told_that_its_message_may_be_lost_when_redis_is_down(plain, redis_server):
    server = plain(bus=redis_server.url)

    with open_websocket(server) as client:
        client.send("hello")
        assert client.recv(TIMEOUT) == "hello"
        redis_server.kill()
        client.send("lost")

        assert wait_closed(client) == (1013, "the bus is unavailable")


def test_connection_ends_when_its_time_is_over(server):
    with (
        open_websocket(server, "/websocket/news?lifetime=0.1") as client,
        SSEClient(server.address, "/sse/news?lifetime=0.1") as stream,
    ):
        assert wait_closed(client) == (1001, "its time is over")
        stream.wait_closed()
        assert not stream.reset
        assert stream.body.count(b"retry: ") == 2


# A Django site.


def log_in(server: GunicornServer, user: int) -> dict[str, str]:
    """Return the headers of somebody who is logged in."""
    response = http_get(server.address, f"/login?user={user}")
    return {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}


def test_site_ends_the_connections_of_a_user_and_of_a_session_on_all_hubs(site, hold):
    server = site(env={"GUNICORN_REALTIME_HUBS": "2"})
    wait_until(lambda: len(server.hub_pids()) == 2, what="two hubs")
    ann, bob, bob_elsewhere = (log_in(server, user) for user in (1, 2, 2))

    def connect_as(headers: dict[str, str]) -> tuple[list[ClientConnection], list[SSEClient]]:
        """Connect so often that both hubs have some of either kind."""
        path, options = "/own/websocket", {"additional_headers": headers}
        websockets = [hold(open_websocket(server, path, **options)) for _ in range(4)]
        return websockets, [hold(SSEClient(server.address, "/own/events", headers)) for _ in range(4)]

    websockets_of_ann, streams_of_ann = connect_as(ann)
    websockets_of_bob, streams_of_bob = connect_as(bob)
    others, other_streams = connect_as(bob_elsewhere)

    http_get(server.address, "/disconnect?user=1")
    assert [wait_closed(client) for client in websockets_of_ann] == [(4401, "disconnected by the site")] * 4
    http_get(server.address, "/disconnect", bob)
    assert [wait_closed(client) for client in websockets_of_bob] == [(4000, "disconnected by the site")] * 4
    for stream in streams_of_ann + streams_of_bob:
        stream.wait_closed()
        assert not stream.reset
        stream.close()

    others[0].send("still here")
    assert [client.recv(TIMEOUT) for client in others] == ["2: still here"] * 4
    assert [stream.next_event().data for stream in other_streams] == ["2: still here"] * 4
    for hub in server.hub_pids():
        for kind in ("websocket", "sse"):
            server.wait_for_log(rf"\[{hub}\] \[INFO\] {kind} news,user-1 from .*, disconnected by the site$")


def test_chromium_opens_the_site_s_websocket_and_no_page_of_another_site_does(site, page):
    server = site()
    page.goto(server.url("/login?user=1"))
    echo = """path => new Promise((resolve, reject) => {
        const received = [];
        const socket = new WebSocket(path.replace("http", "ws"));
        socket.binaryType = "arraybuffer";
        socket.onopen = () => {
            socket.send("größe");
            socket.send(new Uint8Array([0, 255]));
        };
        socket.onerror = () => reject(new Error("no WebSocket"));
        socket.onmessage = ({data}) => {
            received.push(typeof data === "string" ? data : [...new Uint8Array(data)]);
            if (received.length === 2) socket.close(4321);
        };
        socket.onclose = ({code, wasClean}) => resolve([...received, code, wasClean]);
    })"""

    received = page.evaluate(echo, server.url("/own/websocket"))

    assert received == ["1: größe", [*b"1: ", 0, 255], 4321, True]
    with pytest.raises(InvalidStatus) as caught:
        open_websocket(
            server,
            "/own/websocket",
            origin="https://attacker.example",
            additional_headers=log_in(server, 1),
        )
    assert caught.value.response.status_code == 403
    assert b"Pages of this origin" in caught.value.response.body
